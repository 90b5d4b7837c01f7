"""ManifoldMixup: what is drawn and mixed, the loss, eager training."""

import copy
import io
import pickle
from collections import Counter, OrderedDict, namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmix_fast as m
from benchmarks.models import MLP, Encoder, PreActResNet18


def make(kind):
    if kind is MLP:
        return MLP(), torch.randn(6, 16), torch.randint(0, 5, (6,))
    if kind is PreActResNet18:
        return PreActResNet18(4), torch.randn(6, 3, 16, 16), torch.randint(0, 10, (6,))
    return Encoder(), torch.randint(0, 11, (6, 7)), torch.randint(0, 4, (6,))


def gradients(model):
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("kind", [MLP, PreActResNet18, Encoder])
@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients_are_the_hand_written_ones_bit_for_bit(backend, kind, per_sample):
    model, x, y = make(kind)
    twin = copy.deepcopy(model)
    mixup = m.ManifoldMixup(model, kind.layers, per_sample=per_sample)
    before = x.clone()
    for layer in kind.layers:
        model.zero_grad(), twin.zero_grad()
        while True:  # a draw of this layer
            state = copy.deepcopy(model.state_dict())
            z = model(x)
            if mixup.layer == layer:
                break
            model.load_state_dict(state)
        mixup.loss(z, y).backward()
        perm, lam = mixup.mix
        if per_sample:
            assert lam.shape == (6,)
            shape = {MLP: 2, PreActResNet18: 4, Encoder: 3}[kind]
            lam = lam.reshape([-1] + [1] * (shape - 1))
        hand = twin.by_hand(x, layer, (perm, lam))
        assert torch.equal(z, hand), layer
        mixup.mix.cross_entropy(hand, y).backward()
        for a, b in zip(gradients(model), gradients(twin), strict=True):
            assert torch.equal(a, b), layer
        for a, b in zip(model.buffers(), twin.buffers(), strict=True):
            assert torch.equal(a, b), layer
        if not per_sample:
            want = lam * F.cross_entropy(z, y) + (1 - lam) * F.cross_entropy(z, y[perm])
            torch.testing.assert_close(mixup.loss(z, y), want)
    assert torch.equal(x, before)


def test_layers_and_prob_are_drawn_uniformly():
    model, x, y = make(MLP)
    mixup = m.ManifoldMixup(model, ["", "1"], prob=0.5)
    counts = Counter()
    for _ in range(800):
        z = model(x)
        counts[mixup.layer] += 1
        if mixup.layer is None:
            assert mixup.mix is None
            torch.testing.assert_close(mixup.loss(z, y), F.cross_entropy(z, y))
    # 6 standard deviations of binomial counts
    assert abs(counts[None] - 400) < 85 and abs(counts[""] - 200) < 74, counts
    assert abs(counts["1"] - 200) < 74


def test_draws_come_from_the_host_generators():
    model, x, _ = make(MLP)

    def draws(mixup):
        out = []
        for _ in range(6):
            model(x)
            out.append((mixup.layer, mixup.mix and mixup.mix.lam.item()))
        mixup.close()
        return out

    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append(draws(m.ManifoldMixup(model, MLP.layers, prob=0.7)))
    assert runs[0] == runs[1] and len(set(runs[0])) > 1
    runs = []
    for seed in (1, 2):  # the default generator plays no part
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        generator = torch.Generator().manual_seed(3)
        runs.append(draws(m.ManifoldMixup(model, MLP.layers, prob=0.7, generator=generator)))
        assert torch.equal(torch.get_rng_state(), state)
    assert runs[0] == runs[1]


def test_eval_enabled_close():
    model, x, y = make(MLP)
    with m.ManifoldMixup(model, ["1"]) as mixup:
        model.eval()
        plain = model(x)
        assert mixup.layer is None and mixup.mix is None
        torch.testing.assert_close(mixup.loss(plain, y), F.cross_entropy(plain, y))
        assert mixup.accuracy(plain, y) == (plain.argmax(1) == y).float().mean()
        model.train()
        assert not torch.equal(model(x), plain) and mixup.layer == "1"
        model.eval()  # a loss of other logits, those of an averaged copy for one, is plain at once
        torch.testing.assert_close(mixup.loss(plain, y), F.cross_entropy(plain, y))
        model.train()
        mixup.enabled = False
        assert torch.equal(model(x), plain) and mixup.layer is None
        mixup.enabled = True
        model(x)
        assert mixup.layer == "1"
    assert mixup.layer is None and mixup.mix is None
    assert torch.equal(model(x), plain)
    assert not model._forward_hooks and not model[1]._forward_hooks
    torch.testing.assert_close(mixup.loss(plain, y), F.cross_entropy(plain, y))


@pytest.mark.parametrize("mixed", [True, False])
def test_loss_takes_every_option(backend, mixed):
    model, x, y = make(MLP)
    mixup = m.ManifoldMixup(model, ["1"])
    model.train(mixed)
    options = {"weight": torch.rand(5), "label_smoothing": 0.1, "reduction": "none", "z_loss": 0.1}
    options |= {"softcap": 5.0, "ignore_index": 1, "inplace_backward": True}
    z = model(x)
    mix = mixup.mix or m.Mix.identity(6)
    want = m.mixed_cross_entropy(z, y, *mix, **options)
    torch.testing.assert_close(mixup.loss(z, y, **options), want)
    soft = torch.rand(6, 5)
    want = m.mixed_cross_entropy(z, soft, *mix)
    torch.testing.assert_close(mixup.loss(z, soft), want)
    assert 0 <= mixup.accuracy(z, y) <= 1
    torch.testing.assert_close(mixup.accuracy(z, y), mix.accuracy(z, y))


def test_calls_outside_the_root_mix_nothing():
    model, x, _ = make(MLP)
    m.ManifoldMixup(model, ["0"])
    model(x)
    assert torch.equal(model[0](x), F.linear(x, model[0].weight, model[0].bias))


def test_nested_outputs_keep_their_types():
    Pair = namedtuple("Pair", "a b")

    class Bag(OrderedDict):
        note = "kept"

    class Layer(nn.Module):
        def forward(self, x):
            h = x * 2
            bag = Bag(pair=Pair(h, [h, x[:2]]), count=3, text="s", labels=torch.arange(len(x)))
            return h, bag, None

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Layer()

        def forward(self, x):
            self.out = self.layer(x)
            return self.out[0]

    model, x = Model(), torch.randn(5, 3)
    mixup = m.ManifoldMixup(model, ["layer"])
    model(x)
    h, bag, none = model.out
    assert torch.equal(h, mixup.mix.mix(x * 2)) and none is None
    assert type(bag) is Bag and type(bag["pair"]) is Pair and type(bag["pair"].b) is list
    assert bag["pair"].a is h and bag["pair"].b[0] is h  # mixed once
    assert torch.equal(bag["pair"].b[1], x[:2]) and (bag["count"], bag["text"]) == (3, "s")
    assert torch.equal(bag["labels"], torch.arange(5))


def test_input_mixup_of_keywords_and_nests():
    class Model(nn.Module):
        def forward(self, batch, *, extra):
            return batch["image"] + extra

    model = Model()
    mixup = m.ManifoldMixup(model, [""])
    image, extra = torch.randn(4, 2), torch.randn(4, 2)
    out = model({"image": image}, extra=extra)
    torch.testing.assert_close(out, mixup.mix.mix(image) + mixup.mix.mix(extra))
    assert torch.equal(model.eval()({"image": image}, extra=extra), image + extra)


def test_sequence_first():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    mixup = m.ManifoldMixup(model, ["0"], dim=1)
    x = torch.randn(9, 5, 4)
    out = model(x)
    assert mixup.mix.perm.shape == (5,)
    h = F.linear(x, model[0].weight, model[0].bias)
    assert torch.equal(out, model[1](mixup.mix.mix(h, dim=1)))


@pytest.mark.parametrize("copier", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_mixes_nothing(copier):
    model, x, _ = make(MLP)
    mixup = m.ManifoldMixup(model, MLP.layers, generator=torch.Generator())
    model(x)
    if copier == "deepcopy":
        twin = copy.deepcopy(model)
    elif copier == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    draw = mixup.mix
    plain = twin(x)
    assert mixup.mix is draw and twin.training
    mixup.close()
    assert torch.equal(model(x), plain)
    again = m.ManifoldMixup(twin, ["0"])
    assert not torch.equal(twin(x), plain) and again.layer == "0"


def test_inplace_auto_and_forced():
    x, y = torch.randn(6, 16), torch.randint(0, 5, (6,))
    for layer, inplace, same in [
        ("0", "auto", True),  # linear
        ("1", "auto", False),  # ReLU saves its output
        ("3", "auto", True),  # GELU saves its input
        ("0", False, False),
        ("3", True, True),
    ]:
        model = MLP()
        mixup = m.ManifoldMixup(model, [layer], inplace=inplace)
        following, versions = model[int(layer) + 1], []
        following.register_forward_pre_hook(lambda _, args, v=versions: v.append(args[0]._version))
        mixup.loss(model(x), y).backward()
        assert (versions.pop() > 0) == same, (layer, inplace)
        if inplace == "auto" and same:  # another hook may keep the output: not in place then
            model[int(layer)].register_forward_hook(lambda *_: None)
            mixup.loss(model(x), y).backward()
            assert versions.pop() == 0
    mixup = m.ManifoldMixup(model := MLP(), ["1"], inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        mixup.loss(model(x), y).backward()


@pytest.mark.parametrize("views", [True, False])
def test_inplace_never_mixes_shared_memory_twice(views):
    class Two(nn.Module):
        def forward(self, x):
            h = x * 2
            return (h, h[:, :1]) if views else (h, h)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.two = Two()

        def forward(self, x):
            a, b = self.two(x)
            return a + b

    model, x = Model(), torch.randn(4, 3)
    mixup = m.ManifoldMixup(model, ["two"], inplace=True)
    if views:
        with pytest.raises(RuntimeError, match="two views of one memory"):
            model(x)
    else:
        out = model(x)
        torch.testing.assert_close(out, 2 * mixup.mix.mix(x * 2))
    mixup.close()
    mixup = m.ManifoldMixup(model, ["two"])
    out, mixed = model(x), mixup.mix.mix(x * 2)
    torch.testing.assert_close(out, mixed + (mixed[:, :1] if views else mixed))


def test_same_losses_as_naive_ops_for_50_steps():
    torch.manual_seed(0)
    model, x, _ = make(MLP)
    twin = copy.deepcopy(model)
    mixup = m.ManifoldMixup(model, MLP.layers, alpha=1.0)
    data = [(torch.randn(32, 16), torch.randint(0, 5, (32,))) for _ in range(50)]
    optimizers = [torch.optim.SGD(n.parameters(), 0.05, momentum=0.9) for n in (model, twin)]
    for x, y in data:
        loss = mixup.loss(model(x), y)
        perm, lam = mixup.mix
        z = twin.by_hand(x, mixup.layer, mixup.mix)
        want = lam * F.cross_entropy(z, y) + (1 - lam) * F.cross_entropy(z, y[perm])
        torch.testing.assert_close(loss, want, rtol=1e-6, atol=0)
        for value, optimizer in zip((loss, want), optimizers, strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()


def test_bf16_autocast():
    model, x, y = make(PreActResNet18)
    mixup = m.ManifoldMixup(model, ["", "layer1", "layer2"])
    for layer in mixup.layers:
        while True:
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                z = model(x)
                loss = mixup.loss(z, y)
            if mixup.layer == layer:
                break
        assert z.dtype == torch.bfloat16 and loss.dtype == torch.float32
        loss.backward()
        twin = copy.deepcopy(model)
        twin.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            hand = twin.by_hand(x, layer, mixup.mix)
        assert torch.equal(hand, z)
        mixup.mix.cross_entropy(hand, y).backward()
        for a, b in zip(gradients(model), gradients(twin), strict=True):
            assert torch.equal(a, b), layer
