"""CUDA graphs, streams, devices and synchronisation."""

import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

import mmix_fast as m

pytestmark = pytest.mark.gpu


def step(x, z, y, perm, lam):
    """Runs mix, mix_batch_ and the loss with its gradient; x is mixed in place."""
    out = m.mix(x, perm, lam)
    _, soft = m.mix_batch_(x, y, perm, lam, num_classes=z.shape[1])
    leaf = z.detach().requires_grad_()
    loss = m.mixed_cross_entropy(leaf, y, perm, lam)
    (grad,) = torch.autograd.grad(loss, leaf)
    return out, soft, loss.detach(), grad


def problem(batch=64, columns=4096, classes=1000, device="cuda"):
    x = torch.randn(batch, columns, device=device, dtype=torch.bfloat16)
    z = torch.randn(batch, classes, device=device)
    y = torch.randint(0, classes, (batch,), device=device)
    return x, z, y, torch.randperm(batch, device=device), torch.rand((), device=device)


def check(got, x_before, x_after, z, y, perm, lam):
    with m.use_backend("reference"):
        want = step(x_before, z, y, perm, lam)
    assert torch.equal(got[0], want[0]) and torch.equal(x_after, x_before)
    for a, b in zip(got[1:], want[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def captured(call):
    """A graph of the call, and its result, which a replay computes."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()  # compiles, and loads the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call()
    return graph, got


@pytest.mark.parametrize("batch", [64, 20_000])
def test_graph_replays_with_new_lam_and_perm(batch):
    x, z, y, perm, lam = problem(batch, 512, 100)
    graph, got = captured(lambda: step(x, z, y, perm, lam))
    for _ in range(3):
        x.normal_()
        perm.copy_(torch.randperm(batch))
        lam.uniform_()
        before = x.clone()
        graph.replay()
        check(got, before, x, z, y, perm, lam)


@pytest.mark.parametrize("lam", [0.25, torch.tensor(0.25)], ids=["number", "tensor on the CPU"])
def test_graph_captures_a_lam_of_the_host(lam):
    x, z, y, perm, _ = problem()
    graph, got = captured(lambda: step(x, z, y, perm, lam))
    before = x.clone()
    graph.replay()
    check(got, before, x, z, y, perm, lam)


def test_graph_captures_a_box_of_the_host():
    x, perm = torch.randn(8, 3, 16, 16), torch.randperm(8)
    want = x.clone()
    want[..., 2:9, 1:15] = x[perm][..., 2:9, 1:15]
    start = x.clone()
    graph, (_, lam) = captured(lambda: m.cutmix_(x, perm, (2, 9, 1, 15)))
    x.copy_(start)
    graph.replay()
    assert torch.equal(x, want)
    torch.testing.assert_close(lam.item(), 1 - 7 * 14 / 256)


def test_graph_replays_with_a_new_box():
    x, perm, box = torch.randn(8, 3, 16, 16), torch.randperm(8), torch.tensor([0, 4, 0, 4])
    graph, (_, lam) = captured(lambda: m.cutmix_(x, perm, box))
    for new in ([2, 9, 1, 15], [0, 16, 0, 16], [3, 3, 5, 9]):
        box.copy_(torch.tensor(new))
        want = x.clone()
        top, bottom, left, right = new
        want[..., top:bottom, left:right] = x[perm][..., top:bottom, left:right]
        graph.replay()
        assert torch.equal(x, want)
        torch.testing.assert_close(lam.item(), 1 - (bottom - top) * (right - left) / 256)


def test_graph_replays_with_new_float_targets_and_upstream():
    _, z, _, perm, lam = problem()
    t, up = torch.rand_like(z).softmax(1), torch.ones(())

    def both():
        leaf = z.detach().requires_grad_()
        return torch.autograd.grad(m.mixed_cross_entropy(leaf, t, perm, lam), leaf, up)[0]

    graph, got = captured(both)
    for upstream in (1.0, 0.25, 1.0):
        z.normal_()
        t.copy_(torch.rand_like(z).softmax(1))
        up.fill_(upstream)
        graph.replay()
        with m.use_backend("reference"):
            torch.testing.assert_close(got, both(), rtol=1e-5, atol=1e-6)


def test_graph_draws_anew_at_each_replay():
    graph, (perm, lam) = captured(lambda: m.sample_mix(64, 0.4))
    draws = set()
    for _ in range(4):
        graph.replay()
        assert torch.equal(perm.sort().values, torch.arange(64)) and 0 <= lam.item() <= 1
        draws.add((*perm.tolist(), lam.item()))
    assert len(draws) == 4


@contextmanager
def no_waiting():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_makes_the_host_wait():
    x, z, y, perm, lam = problem()
    step(x, z, y, perm, lam)  # may wait, to compile and to load kernels
    with no_waiting():
        step(x, z, y, perm, lam)
        step(x, z, y, perm, 0.3)
        step(x, z, y, perm, torch.tensor(0.3, device="cpu"))


BOX = (2, 9, 1, 15)
OTHER_OPS = {
    "cutmix_, ints": lambda d: m.cutmix_(d.x, d.perm, BOX),
    "cutmix_, boxes": lambda d: m.cutmix_(d.x, d.perm, d.boxes, lam=0.3),
    "mix_targets": lambda d: m.mix_targets(d.t, d.perm, 0.3),
    "float targets": lambda d: m.mixed_cross_entropy(d.z, d.t, d.perm, 0.3).backward(),
    "binary loss": lambda d: m.mixed_binary_cross_entropy(d.z, d.y, d.perm, 0.3).backward(),
    "multi-hot": lambda d: m.mixed_binary_cross_entropy(d.z, d.t, d.perm, 0.3).backward(),
    "upstream": lambda d: (0.25 * m.mixed_cross_entropy(d.z, d.y, d.perm, 0.3)).backward(),
    "accuracy": lambda d: m.sample_mix(64, 0.4, per_sample=True).accuracy(d.z, d.y),
    **{
        f"sample_mix, {pairing}": lambda d, pairing=pairing: m.sample_mix(64, 0.4, pairing=pairing)
        for pairing in ("random", "flip", "roll", "derangement")
    },
}


@pytest.mark.parametrize("op", OTHER_OPS)
def test_other_ops_do_not_make_the_host_wait(op):
    given = SimpleNamespace(
        x=torch.randn(64, 3, 16, 16),
        boxes=torch.tensor([[0, 4, 0, 4]]).repeat(64, 1),
        perm=torch.randperm(64),
        t=torch.rand(64, 10),
        z=torch.randn(64, 10, requires_grad=True),
        y=torch.randint(0, 10, (64,)),
    )
    OTHER_OPS[op](given)
    with no_waiting():
        OTHER_OPS[op](given)


def test_ops_run_on_the_current_stream():
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        x = torch.zeros(64, 1 << 20)
        for _ in range(20):  # takes so long that a launch on another stream would read x too early
            x.add_(1).mul_(1)
        got = m.mix(x, torch.randperm(64), torch.tensor(0.5))
        x.requires_grad_()
        y, perm = torch.zeros(64, dtype=torch.int64), torch.arange(64)
        loss = m.mixed_cross_entropy(x, y, perm, 0.5)
        (gradient,) = torch.autograd.grad(2 * loss, x)
    side.synchronize()
    assert (got == 20).all()
    torch.testing.assert_close(loss.item(), math.log(1 << 20), rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient[:, 0], torch.full((64,), -2 / 64), rtol=1e-4, atol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_ops_run_on_the_device_of_x():
    x, z, y, perm, lam = problem(device="cuda:1")
    before = x.clone()
    got = step(x, z, y, perm, lam)
    assert all(t.device.index == 1 for t in got)
    check(got, before, x, z, y, perm, lam)


def test_arguments_on_different_devices_raise():
    x, _, _, perm, _ = problem()
    with pytest.raises(ValueError, match=r"perm must be on cuda:0, got cpu"):
        m.mix(x, perm.cpu(), 0.3)
    with pytest.raises(TypeError, match="perm must be int64"):
        m.mix(x, perm.int(), 0.3)
    with pytest.raises(ValueError, match=r"lam must be on cuda:0, got cpu"):
        m.mix(x, perm, torch.rand(64, device="cpu"))
    strided = perm.repeat_interleave(2)[::2]
    assert torch.equal(m.mix(x, strided, 0.3), m.mix(x, perm, 0.3))
