"""The batch dimension is never guessed, and a tensor that cannot be mixed raises."""

import dataclasses
import types
from collections import deque, namedtuple

import pytest
import torch
from torch import nn

import mmix_fast as m

BATCH, LENGTH, WIDTH = 6, 5, 4


class Around(nn.Module):
    """Runs one layer, and keeps its output as the rest of the model gets it."""

    def __init__(self, layer, call=lambda layer, x: layer(x)):
        super().__init__()
        self.layer, self.call, self.head = layer, call, nn.Linear(WIDTH, 3)

    def forward(self, x):
        self.seen = self.call(self.layer, x)
        return self.head(x.mean(1))


def leaves(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value if part is not None for t in leaves(part)]


RECURRENT = {
    "lstm": (nn.LSTM, {}),
    "two layers": (nn.LSTM, {"num_layers": 2}),
    "projected": (nn.LSTM, {"proj_size": 2, "bidirectional": True}),
    "gru": (nn.GRU, {"num_layers": 2}),
    "rnn": (nn.RNN, {"bidirectional": True}),
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("batch", [BATCH, 2, 1])
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_mix_their_states_along_the_batch(kind, batch, batch_first):
    cls, options = RECURRENT[kind]
    layer = cls(WIDTH, 3, batch_first=batch_first, **options)
    turn = (lambda x: x) if batch_first else (lambda x: x.transpose(0, 1))
    model = Around(layer, lambda layer, x: layer(turn(x)))
    mixup = m.ManifoldMixup(model, ["layer"], pairing="flip")
    x = torch.randn(batch, LENGTH, WIDTH)
    model(x)
    mixed, draw = model.seen, mixup.mix
    mixup.enabled = False
    model(x)
    assert type(mixed) is tuple and len(mixed) == 2
    dims = [0 if batch_first else 1] + [1] * len(leaves(model.seen[1]))
    for got, plain, dim in zip(leaves(mixed), leaves(model.seen), dims, strict=True):
        assert torch.equal(got, draw.mix(plain, dim=dim))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_attention_mixes_output_and_weights_along_the_batch(batch_first, weights):
    layer = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first)
    turn = (lambda x: x) if batch_first else (lambda x: x.transpose(0, 1))
    for batch in (BATCH, LENGTH):
        model = Around(layer, lambda a, x: a(*[turn(x)] * 3, need_weights=weights))
        with m.ManifoldMixup(model, ["layer"], pairing="flip") as mixup:
            x = torch.randn(batch, LENGTH, WIDTH)
            model(x)
            mixed, draw = model.seen, mixup.mix
        model(x)
        assert torch.equal(mixed[0], draw.mix(model.seen[0], dim=0 if batch_first else 1))
        if weights:
            assert torch.equal(mixed[1], draw.mix(model.seen[1]))


@pytest.mark.parametrize("kind", ["layer", "encoder"])
@pytest.mark.parametrize("batch", [BATCH, LENGTH])
def test_transformer_layers_with_the_batch_second(kind, batch):
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0)
    if kind == "encoder":
        layer = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    model = Around(layer, lambda layer, x: layer(x.transpose(0, 1)))
    with m.ManifoldMixup(model, ["layer"], pairing="flip") as mixup:
        x = torch.randn(batch, LENGTH, WIDTH)
        model(x)
        mixed, draw = model.seen, mixup.mix
    model(x)
    assert torch.equal(mixed, draw.mix(model.seen, dim=1))


class Encoder(nn.Module):
    """A user's module that returns the state of a recurrent layer, or a state of its own."""

    def __init__(self, returns, layers):
        super().__init__()
        self.rnn = nn.GRU(WIDTH, 3, layers, batch_first=True) if returns != "own state" else None
        self.returns, self.layers, self.linear = returns, layers, nn.Linear(WIDTH, 3)

    def forward(self, x):
        if self.rnn is None:
            h = self.linear(x)
            return h, torch.stack([h[:, 0], h[:, 1]])
        output, state = self.rnn(x)
        return {"both": (output, state), "state": state, "list": [output, {"h": state}]}[
            self.returns
        ]


@pytest.mark.parametrize("returns", ["both", "state", "list", "own state"])
@pytest.mark.parametrize("batch", [BATCH, 2])
def test_states_returned_by_a_users_module_raise(returns, batch):
    if returns == "own state" and batch == 2:
        pytest.skip("(2, 2, width) from an unknown layer: its first dimension may be the batch")
    model = Around(Encoder(returns, 2))
    m.ManifoldMixup(model, ["layer"])
    with pytest.raises(ValueError, match=r"'layer' must give its batch of \d at dim=0.*dim=1"):
        model(torch.randn(batch, LENGTH, WIDTH))


def test_outputs_without_a_batch_are_left_as_they_are():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions = nn.Parameter(torch.randn(1, LENGTH, WIDTH))

        def forward(self, x):
            return x * 2, self.positions, torch.zeros(2, LENGTH, LENGTH)

    model = Around(Layer())
    mixup = m.ManifoldMixup(model, ["layer"])
    x = torch.randn(LENGTH, LENGTH, WIDTH)  # the length happens to equal the batch size
    model(x)
    h, positions, mask = model.seen
    assert torch.equal(h, mixup.mix.mix(x * 2))
    assert positions is model.layer.positions and not mask.any()


@dataclasses.dataclass(frozen=True)
class Record:
    hidden: torch.Tensor
    name: str
    more: list


@dataclasses.dataclass
class Slots:
    __slots__ = ("inner",)
    inner: torch.Tensor


class Opaque:
    def __init__(self, t):
        self.t = t


class OpaqueSlots:
    __slots__ = ("t",)

    def __init__(self, t):
        self.t = t


Named = namedtuple("Named", "a b")


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x * 2)


def test_dataclasses_are_mixed():
    model = Around(Returns(lambda h: (Record(h, "r", [h + 1, {"s": Slots(h + 2)}]), Named(h, 1))))
    mixup = m.ManifoldMixup(model, ["layer"])
    x = torch.randn(BATCH, LENGTH, WIDTH)
    model(x)
    record, named = model.seen
    mixed = mixup.mix.mix
    assert type(record) is Record and record.name == "r"
    assert torch.equal(record.hidden, mixed(x * 2)) and torch.equal(named.a, record.hidden)
    assert torch.equal(record.more[0], mixed(x * 2 + 1))
    assert torch.equal(record.more[1]["s"].inner, mixed(x * 2 + 2))


UNREACHABLE = {
    "Opaque": lambda h: (h, Opaque(h)),
    "OpaqueSlots": lambda h: [h, {"a": OpaqueSlots(h)}],
    "SimpleNamespace": lambda h: (h, types.SimpleNamespace(h=[h])),
    "set": lambda h: (h, {h}),
    "deque": lambda h: (h, deque([h])),
    "generator": lambda h: (h, (t for t in [h])),
    "mappingproxy": lambda h: (h, types.MappingProxyType({"h": h})),
    "Normal": lambda h: (h, torch.distributions.Normal(h, 1.0)),
    "PackedSequence": lambda h: (
        h,
        nn.utils.rnn.pack_padded_sequence(h, torch.full((len(h),), LENGTH), batch_first=True),
    ),
}


@pytest.mark.parametrize("kind", UNREACHABLE)
@pytest.mark.parametrize("alone", [True, False])
def test_tensors_inside_unknown_containers_raise(kind, alone):
    make = UNREACHABLE[kind]

    def given(h):
        value = make(h)
        return list(value)[1] if alone else value

    model = Around(Returns(given))
    m.ManifoldMixup(model, ["layer"])
    with pytest.raises(ValueError, match=f"'layer' must give tensors in .* got an? {kind}"):
        model(torch.randn(BATCH, LENGTH, WIDTH))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda h: (h, h + 1j), "cannot mix a complex tensor"),
        (lambda h: (h, h.to_sparse()), "cannot mix a sparse_coo tensor"),
        (lambda h: (h, torch.nested.as_nested_tensor(list(h))), "cannot mix a nested tensor"),
    ],
)
def test_tensors_that_cannot_be_mixed_raise(make, message):
    model = Around(Returns(make))
    m.ManifoldMixup(model, ["layer"])
    with pytest.raises(ValueError, match=message):
        model(torch.randn(BATCH, LENGTH, WIDTH))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_objects_without_a_batch_pass_unchanged():
    extra = ["text", 3, 2.5, None, torch.float32, Opaque(3), {"a", "b"}, torch.Size([2])]
    model = Around(Returns(lambda h: (h, *extra, torch.arange(BATCH))))
    mixup = m.ManifoldMixup(model, ["layer"])
    x = torch.randn(BATCH, LENGTH, WIDTH)
    model(x)
    assert torch.equal(model.seen[0], mixup.mix.mix(x * 2))
    assert list(model.seen[1:-1]) == extra and torch.equal(model.seen[-1], torch.arange(BATCH))


class Images(nn.Module):
    """As in object detection: the batch is a list of images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images, targets=None):
        images = images["images"] if isinstance(images, dict) else images
        return torch.stack([self.conv(i[None]).mean((0, 2, 3)) for i in images])


@pytest.mark.parametrize("layers", [[""], ["conv"], ["", "conv"]])
@pytest.mark.parametrize(
    "pack", [list, tuple, lambda i: {"images": i}, lambda i: list(i[:1]), lambda i: list(i[:3])]
)
def test_a_list_of_images_raises(layers, pack):
    images = [torch.randn(3, 8, 8) for _ in range(5)]
    model = Images()
    m.ManifoldMixup(model, layers)
    with pytest.raises(ValueError, match=r"got a list or tuple that holds float32 of shape \(3, 8"):
        model(pack(images))
    with pytest.raises(ValueError, match="got a list or tuple"):
        model(images=pack(images))


def test_a_list_beside_the_input_raises_if_it_may_hold_the_batch():
    class Model(nn.Module):
        def forward(self, x, boxes):
            return x + boxes[0].shape[0]

    model = Model()
    mixup = m.ManifoldMixup(model, [""])
    x = torch.randn(4, 3)
    assert torch.equal(model(x, [torch.rand(2, 4)]), mixup.mix.mix(x) + 2)
    with pytest.raises(ValueError, match=r"got a list or tuple that holds float32 of shape \(4, 4"):
        model(x, [torch.rand(4, 4)])  # four boxes for four samples, by coincidence
    Pair = namedtuple("Pair", "image mask")
    model = nn.Module()
    model.forward = lambda pair: pair.image + pair.mask
    with m.ManifoldMixup(model, [""]) as mixup:
        out = model(Pair(x, x * 2))
        torch.testing.assert_close(out, mixup.mix.mix(x) + mixup.mix.mix(x * 2))
