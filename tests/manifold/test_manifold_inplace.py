"""inplace="auto" overwrites an output only where nothing else sees it."""

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

X, Y = torch.randn(6, 16), torch.tensor([0, 1, 2, 3, 4, 0])


class Reader(nn.Module):
    """The layer after the mixed one: remembers whether what it got had been written in place."""

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
def test_in_place_where_nothing_looks(layer):
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
def test_out_of_place_beside_hooks_of_the_layer(watch, where):
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
def test_out_of_place_beside_global_hooks(register):
    handle = register(lambda *_: None)
    try:
        assert not step(*make(nn.Linear(16, 16)))
    finally:
        handle.remove()
    assert step(*make(nn.Linear(16, 16)))


class Keeps(TorchDispatchMode):
    """Keeps every result of an operation, as tracers and selective checkpoints do."""

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


def test_what_a_mode_keeps_is_not_changed():
    model, mixup = make(nn.Linear(16, 16))
    with Keeps() as mode:
        assert not step(model, mixup)
    own = [t for t, _ in mode.kept if t.shape == (6, 16)]
    assert own and all(torch.equal(t, before) for t, before in mode.kept if t.shape == (6, 16))
    with KeepsFunctions():
        assert not step(model, mixup)
    with torch.device("cpu"):  # a mode too, but one that keeps nothing
        assert step(model, mixup)


def test_out_of_place_under_policies_of_saved_tensors():
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


def test_tensor_subclasses_are_left_alone():
    class Odd(torch.Tensor):
        pass

    class Layer(nn.Linear):
        def forward(self, x):
            return super().forward(x).as_subclass(Odd)

    model = nn.Sequential(Layer(16, 16), Reader(), nn.Linear(16, 5))
    mixup = m.ManifoldMixup(model, ["0"])
    assert not step(model, mixup)
