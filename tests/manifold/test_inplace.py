"""inplace="auto" overwrites an output only if nothing else needs it; True and False force."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import mmix_fast as m
from benchmarks.models import MLP
from tests.manifold.models import X, Y


class Reader(nn.Module):
    """The layer after the mixed one: records whether its input was written in place."""

    def forward(self, x):
        self.written = x._version > 0
        return x * 1


def make(*layer):
    model = nn.Sequential(nn.Sequential(*layer), Reader(), nn.Linear(16, 5))
    return model, m.ManifoldMixup(model, ["0"])


def step(model, mixup):
    mixup.loss(model(X), Y).backward()
    return model[1].written


@pytest.mark.parametrize("layer", [nn.Linear(16, 16), nn.LayerNorm(16), nn.GELU(), nn.SiLU()])
def test_in_place_if_nothing_else_needs_the_output(layer):
    assert step(*make(nn.Linear(16, 16), layer))


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.Tanh(), nn.SiLU(inplace=True), nn.Identity()])
def test_out_of_place_after_layers_that_keep_their_output(layer):
    assert not step(*make(nn.Linear(16, 16), layer))


def hook_backward(module):
    return module.register_full_backward_hook(lambda *_: None)


def hook_backward_pre(module):
    return module.register_full_backward_pre_hook(lambda *_: None)


def hook_forward(module):
    return module.register_forward_hook(lambda *_: None)


def replace_forward(module):
    module.forward = partial(type(module).forward, module)


@pytest.mark.parametrize("where", ["layer", "its last part"])
@pytest.mark.parametrize("watch", [hook_backward, hook_backward_pre, hook_forward, replace_forward])
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_out_of_place_if_the_layer_has_hooks(watch, where):
    model, mixup = make(nn.Linear(16, 16), nn.LayerNorm(16))
    watch(model[0] if where == "layer" else model[0][1])
    assert not step(model, mixup)


@pytest.mark.parametrize(
    "register",
    [
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_full_backward_hook,
        nn.modules.module.register_module_full_backward_pre_hook,
    ],
)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_out_of_place_if_there_are_global_hooks(register):
    handle = register(lambda *_: None)
    try:
        assert not step(*make(nn.Linear(16, 16)))
    finally:
        handle.remove()
    assert step(*make(nn.Linear(16, 16)))


class Keeps(TorchDispatchMode):
    """Keeps the result of every operation, as tracers and selective checkpoints do."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.kept.append((out, out.clone()))
        return out


class KeepsFunctions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_tensors_kept_by_a_dispatch_mode_are_not_overwritten():
    model, mixup = make(nn.Linear(16, 16))
    with Keeps() as mode:
        assert not step(model, mixup)
    own = [t for t, _ in mode.kept if t.shape == (6, 16)]
    assert own and all(torch.equal(t, before) for t, before in mode.kept if t.shape == (6, 16))
    with KeepsFunctions():
        assert not step(model, mixup)
    with torch.device("cpu"):  # a mode too, but it keeps no tensor
        assert step(model, mixup)


def test_out_of_place_under_saved_tensor_hooks():
    model, mixup = make(nn.Linear(16, 16))
    with torch.autograd.graph.save_on_cpu():
        assert not step(model, mixup)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        assert not step(model, mixup)
    assert step(model, mixup)


def test_selective_checkpoint():
    aten = torch.ops.aten

    def policy(ctx, op, *args, **kwargs):
        saved = op in (aten.addmm.default, aten.mm.default)
        return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE

    class Net(MLP):
        def forward(self, x):
            body = nn.Sequential(*list(self.children())[:-1])
            contexts = partial(create_selective_checkpoint_contexts, policy)
            return self[4](checkpoint(body, x, use_reentrant=False, context_fn=contexts))

    model, plain = Net(), MLP()
    plain.load_state_dict(model.state_dict())
    for layer in ("0", "1", "3"):
        with m.ManifoldMixup(model, [layer]) as mixup:
            mixup.loss(model(X), Y).backward()
            mixup.mix.cross_entropy(plain.by_hand(X, layer, mixup.mix), Y).backward()
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_torch_func_takes_the_gradient_of_a_hooked_model():
    model = MLP()
    mixup = m.ManifoldMixup(model, ["0", "3"])

    def loss(parameters):
        z = torch.func.functional_call(model, parameters, (X,))
        return mixup.loss(z, Y)

    for _ in range(4):
        grads = torch.func.grad(loss)(dict(model.named_parameters()))
        want = mixup.mix.cross_entropy(model.by_hand(X, mixup.layer, mixup.mix), Y)
        for got, p in zip(grads.values(), model.parameters(), strict=True):
            torch.testing.assert_close(got, torch.autograd.grad(want, p, retain_graph=True)[0])


def test_tensor_subclasses_are_mixed_out_of_place():
    class Odd(torch.Tensor):
        pass

    class Layer(nn.Linear):
        def forward(self, x):
            return super().forward(x).as_subclass(Odd)

    model = nn.Sequential(Layer(16, 16), Reader(), nn.Linear(16, 5))
    mixup = m.ManifoldMixup(model, ["0"])
    assert not step(model, mixup)


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
        if inplace == "auto" and same:  # out of place, since this hook may keep the output
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
