"""Names of layers, and every error."""

import pytest
import torch
from torch import nn

import mmix_fast as m
from benchmarks.models import MLP, Encoder
from tests.manifold.models import Tree


class WithoutTensors(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Nothing()

    def forward(self, x):
        self.inner(x)
        return x


class Nothing(nn.Module):
    def forward(self, x):
        return None


X, Y = torch.randn(3, 4), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("layers", "kind", "message"),
    [
        (["layer3"], ValueError, "got 'layer3'; near names: 'layer[12]', 'layer[12]'"),
        (["module.Stem"], ValueError, "got 'module.Stem'; near names: 'stem'"),
        (["zzz"], ValueError, "got 'zzz'; near names: 'stem', 'layer1'"),
        (["stem", "stem"], ValueError, "one module twice: 'stem' and 'stem'"),
        (["stem", "module.stem"], ValueError, "one module twice: 'stem' and 'module.stem'"),
        ([], ValueError, "at least one module"),
        ("stem", TypeError, "layers must be a list of names or 'auto', got str 'stem'"),
        (None, TypeError, "layers must be a list of names or 'auto', got NoneType"),
        ([1], TypeError, "layers must hold names of modules, got int 1"),
    ],
)
def test_layers_that_do_not_exist_or_repeat_raise(layers, kind, message):
    with pytest.raises(kind, match=message):
        m.ManifoldMixup(Tree(), layers)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"alpha": -1.0}, ValueError, "alpha must be finite and at least 0, got -1.0"),
        ({"alpha": "2"}, TypeError, "alpha must be a float, got str '2'"),
        ({"dim": 0.5}, TypeError, "dim must be an int, got float 0.5"),
        ({"prob": 1.5}, ValueError, r"prob must be in \[0, 1\], got 1.5"),
        ({"pairing": "best"}, ValueError, "pairing must be one of random, flip"),
        ({"inplace": "yes"}, ValueError, "inplace must be True, False or 'auto', got 'yes'"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator or None, got int 3"),
    ],
)
def test_bad_options_raise_and_leave_no_hook(options, kind, message):
    model = Tree()
    with pytest.raises(kind, match=message):
        m.ManifoldMixup(model, ["stem"], **options)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(TypeError, match=r"model must be an nn.Module, got function"):
        m.ManifoldMixup(lambda x: x, ["stem"])


def test_layers_that_run_twice_or_never_or_return_no_batch_raise():
    model = Tree()
    for name, kind, message in [
        ("layer2", RuntimeError, "the layer 'layer2' ran twice in one forward"),
        ("unused", RuntimeError, "the layer 'unused' did not run in the forward"),
        (
            "table",
            ValueError,
            r"the layer 'table' must give a floating tensor with the batch size 3 at dim=0, "
            r"got float32 of shape \(1, 1\); int64 of shape \(3,\)",
        ),
    ]:
        with m.ManifoldMixup(model, [name]), pytest.raises(kind, match=message):
            model(X)
        model(X)  # closed, so nothing raises
    with m.ManifoldMixup(model, ["layer1"]) as mixup:  # only the drawn layer is checked
        for _ in range(3):
            mixup.loss(model(X), Y).backward()
    with m.ManifoldMixup(model, ["layer2"], prob=0.0) as mixup:
        model(X)
        assert mixup.layer is None
    with (
        m.ManifoldMixup(model := WithoutTensors(), ["inner"]),
        pytest.raises(ValueError, match=r"'inner' must give .* got no tensor"),
    ):
        model(X)


def test_the_error_for_a_layer_whose_parts_run_names_the_last_part():
    """As in models of timm after set_grad_checkpointing()."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1 = nn.Sequential(nn.Linear(4, 8), nn.GELU())
            self.blocks = nn.ModuleList([nn.Linear(8, 8)])
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            for part in (*self.layer1, *self.blocks):
                x = part(x)
            return self.head(x)

    model = Model()
    for name, part in (("layer1", "layer1.1"), ("blocks", "blocks.0")):
        message = f"'{name}' did not run in the forward.*name the last part, '{part}'"
        with m.ManifoldMixup(model, [name]), pytest.raises(RuntimeError, match=message):
            model(X)
        with m.ManifoldMixup(model, [part]) as mixup:
            mixup.loss(model(X), Y).backward()


def test_the_forward_after_a_failed_one_is_mixed():
    model = Tree()
    mixup = m.ManifoldMixup(model, ["stem"])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.randn(3, 5))
    mixup.loss(model(X), Y)
    assert mixup.layer == "stem"


def test_bad_calls_of_the_loss_and_the_model():
    model = MLP(4)
    mixup = m.ManifoldMixup(model, [""])
    for call in (mixup.loss, mixup.accuracy):
        with pytest.raises(
            RuntimeError, match=r"need a forward of the model first .*call model\(x\)"
        ):
            call(torch.randn(3, 5), Y)
    model.eval()
    mixup.loss(torch.randn(3, 5), Y)
    model.train()
    z = model(X)
    with pytest.raises(ValueError, match=r"target must have shape \(3,\), got int64 of shape \(2"):
        mixup.loss(z, Y[:2])
    with pytest.raises(ValueError, match="must have the batch size 3 of the forward that"):
        mixup.loss(z[:2], Y[:2])
    with pytest.raises(ValueError, match="must be called with a tensor to be mixed, got none"):
        model(None)
    with pytest.raises(
        ValueError, match=r"must have its batch at dim=0, got float32 of shape \(\)"
    ):
        model(torch.tensor(1.0))


def test_the_error_for_integer_inputs_names_the_embedding():
    tokens = torch.randint(0, 11, (3, 5))
    for layers in ([""], ["", "embed"]):
        with (
            m.ManifoldMixup(model := Encoder(), layers),
            pytest.raises(TypeError, match=r"got int64 of shape \(3, 5\).*layers=\['embed'\]"),
        ):
            model(tokens)
    with (
        m.ManifoldMixup(model := MLP(4), [""]),
        pytest.raises(TypeError, match="convert it to float before the model, or mix at a hidden"),
    ):
        model(tokens)


class Wrapper(nn.Module):
    """Prefixes names as DistributedDataParallel and torch.compile do."""

    def __init__(self, inner, name="module"):
        super().__init__()
        self.add_module(name, inner)
        self.name = name

    def forward(self, x):
        return getattr(self, self.name)(x)


@pytest.mark.parametrize("given", ["layer1", "module.layer1", "_orig_mod.module.layer1"])
def test_names_with_and_without_wrappers(given):
    tree = Tree()
    for model in (
        tree,
        Wrapper(tree),
        torch.compile(tree, backend="eager"),
        Wrapper(Wrapper(tree)),
    ):
        with m.ManifoldMixup(model, [given]) as mixup:
            assert mixup.layers == (given,) and len(tree.layer1._forward_hooks) == 1
    with m.ManifoldMixup(Wrapper(tree), [given]) as mixup:
        mixup._root(X)
        assert mixup.layer == given


def test_a_users_layer_may_be_called_module():
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "_orig_mod": nn.Linear(2, 2)})
    with m.ManifoldMixup(Wrapper(model, "x"), ["x.module"]) as mixup:
        assert len(model["module"]._forward_hooks) == 1 and not model["_orig_mod"]._forward_hooks
    with pytest.raises(ValueError, match=r"'x.module.module', which fits 3 modules"):
        m.ManifoldMixup(Wrapper(model, "x"), ["x.module.module"])
    assert mixup.layers == ("x.module",)
