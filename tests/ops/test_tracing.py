"""Fake and meta tensors, tracers, dispatch modes: no op reads values, and gradients are right."""

import pytest
import torch
from functorch.compile import nop
from torch._functorch.aot_autograd import aot_function
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import mmix_fast as m
from tests.support import traced_ops
from tests.support.traced_ops import EVERY, LOSSES, PLAIN, served, step


@pytest.fixture(params=EVERY)
def op(request, backend):
    if not served(backend, request.param):
        pytest.skip("only plain PyTorch has this gradient")
    return EVERY[request.param]


def wanted(call, up):
    with m.use_backend("reference"):
        return step(call, up)(traced_ops.x(), traced_ops.data())


def test_fake_tensors(op):
    for up in (False, True):
        want = wanted(op, up)
        real = {"x": traced_ops.x(), **traced_ops.data()}
        with FakeTensorMode() as mode:
            fake = {name: mode.from_tensor(t) for name, t in real.items()}
            got = step(op, up)(fake.pop("x"), fake)
        assert got.shape == want.shape and got.stride() == want.stride()


@pytest.mark.parametrize("name", EVERY)
def test_meta_tensors(name):
    meta = {name: t.to("meta") for name, t in traced_ops.data().items()}
    got = step(EVERY[name], True)(traced_ops.x().to("meta"), meta)
    assert got.is_meta and got.shape == traced_ops.x().shape
    if name not in PLAIN:
        with m.use_backend("cpp"), pytest.raises(RuntimeError, match="serves cpu tensors, got m"):
            EVERY[name](traced_ops.x().to("meta"), meta)


def test_make_fx(op):
    for up in (False, True):
        graph = make_fx(step(op, up))(traced_ops.x(), traced_ops.data())
        got = graph(traced_ops.x(), traced_ops.data())
        torch.testing.assert_close(got, wanted(op, up))


@pytest.mark.parametrize("mode", ["fake", "symbolic"])
def test_make_fx_with_fake_tensors(backend, mode):
    def every(z, d):
        total = sum(call(z, d).sum() for name, call in EVERY.items() if served(backend, name))
        return total / len(EVERY)  # step takes its sine, which magnifies a large sum's rounding

    graph = make_fx(step(every, True), tracing_mode=mode)(traced_ops.x(), traced_ops.data())
    got = graph(traced_ops.x(), traced_ops.data())
    torch.testing.assert_close(got, wanted(every, True))


def test_aot_function(op):
    z, d = traced_ops.x().requires_grad_(), traced_ops.data()
    traced = aot_function(lambda z, *rest: op(z, dict(zip(d, rest, strict=True))), nop, nop)
    (got,) = torch.autograd.grad(traced(z, *d.values()).sum(), z)
    torch.testing.assert_close(got, wanted(op, False))


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_dispatch_modes_and_saved_tensor_hooks(op):
    for up in (False, True):
        want = wanted(op, up)
        for mode in (
            Watch(),
            FlopCounterMode(display=False),
            torch.autograd.graph.save_on_cpu(),
            torch.autograd.detect_anomaly(),
        ):
            with mode:
                got = step(op, up)(traced_ops.x(), traced_ops.data())
            torch.testing.assert_close(got, want)
            if isinstance(mode, Watch):
                assert torch.ops.aten._local_scalar_dense.default not in mode.seen


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    class Step(torch.nn.Module):
        def forward(self, z, d):
            h = m.mix_(m.mix(z, d["perm"], 0.3) * 1, d["perm"], d["lams"])
            return sum(call(h, d).sum() for call in LOSSES.values())

    args = traced_ops.x(), traced_ops.data()
    program = torch.export.export(Step(), args, strict=strict).module()
    torch.testing.assert_close(program(*args), Step()(*args))


def test_a_training_step_with_fake_tensors_of_bad_values(backend):
    """Fake tensors have no values, so bad labels and a bad perm do not raise."""
    m.set_validation(True)
    try:
        with FakeTensorMode():
            z = torch.randn(4, 3, requires_grad=True)
            y, perm = torch.full((4,), 99), torch.zeros(4, dtype=torch.long)
            loss = m.mixed_cross_entropy(m.mix(z, perm, 0.3), y, perm, 0.3)
            soft = m.mix_targets(y, perm, 0.3, num_classes=3)
            m.cutmix_(torch.rand(4, 3, 2, 2), perm, (0, 9, 0, 9))
            m.mix_batch_(torch.rand(4, 2), y, perm, 0.3, num_classes=3)
        assert loss.shape == () and soft.shape == (4, 3)
    finally:
        m.set_validation(False)


@pytest.mark.parametrize("pack", [lambda t: t, lambda t: t.clone()], ids=["kept", "cloned"])
def test_a_second_in_place_backward_raises_under_saved_tensor_hooks(backend, pack):
    """Under these hooks, autograd does not check the version of the saved logits."""
    if backend == "reference":
        pytest.skip("its gradient is one of its own")
    d, z = traced_ops.data(), traced_ops.x().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = m.mixed_cross_entropy(z * 1, d["y"], d["perm"], 0.3, inplace_backward=True)
    (got,) = torch.autograd.grad(loss, z, retain_graph=True)
    torch.testing.assert_close(got, wanted(EVERY["loss, labels, mean"], False))
    with pytest.raises(RuntimeError, match="allows one backward; call mixed_cross_entropy with"):
        torch.autograd.grad(loss, z)
