"""CUDA graphs, streams, devices and synchronisation: `pytest -m gpu` on a machine with a GPU.

Values are tested by the tests with the `backend` fixture, which run on the GPU too.
Memory errors and races on the device: `compute-sanitizer --tool memcheck` (or `racecheck`,
`initcheck`, `synccheck`) `.venv/bin/python -m pytest -q -m gpu -k "not graph"`.
"""

import pytest
import torch

import mmix_fast as m
from mmix_fast.dispatch import BACKENDS

pytestmark = pytest.mark.gpu
STATUS = {b.name: m.backends()[b.name] for b in BACKENDS if b.device == "cuda"}
USABLE = [name for name, status in STATUS.items() if status.usable]
if not USABLE:
    why = "; ".join(f"{name}: {', '.join(status.reasons)}" for name, status in STATUS.items())
    pytest.skip(f"no backend of a GPU: {why}", allow_module_level=True)


@pytest.fixture(params=USABLE, autouse=True)
def on_gpu(request):
    with m.use_backend(request.param), torch.device("cuda"):
        yield


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


@pytest.mark.parametrize("batch", [64, 20_000])
def test_graph_replays_with_new_lam_and_perm(batch):
    x, z, y, perm, lam = problem(batch, 512, 100)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step(x, z, y, perm, lam)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step(x, z, y, perm, lam)
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
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step(x, z, y, perm, lam)
    side.synchronize()
    before, graph = x.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step(x, z, y, perm, lam)
    graph.replay()
    check(got, before, x, z, y, perm, lam)


def test_graph_captures_a_box_of_the_host():
    x, perm = torch.randn(8, 3, 16, 16), torch.randperm(8)
    want = x.clone()
    want[..., 2:9, 1:15] = x[perm][..., 2:9, 1:15]
    graph = torch.cuda.CUDAGraph()
    m.cutmix_(x.clone(), perm, (2, 9, 1, 15))
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        _, lam = m.cutmix_(x, perm, (2, 9, 1, 15))
    graph.replay()
    assert torch.equal(x, want)
    torch.testing.assert_close(lam.item(), 1 - 7 * 14 / 256)


def test_nothing_makes_the_host_wait():
    x, z, y, perm, lam = problem()
    step(x, z, y, perm, lam)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(x, z, y, perm, lam)
        step(x, z, y, perm, 0.3)
        step(x, z, y, perm, torch.tensor(0.3, device="cpu"))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_ops_run_on_the_current_stream():
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        x = torch.zeros(64, 1 << 20)
        for _ in range(20):  # takes so long that a launch on another stream would read x too early
            x.add_(1).mul_(1)
        got = m.mix(x, torch.randperm(64), torch.tensor(0.5))
    side.synchronize()
    assert (got == 20).all()


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


def test_bad_values_poison_their_rows_alone():
    x, z, y, perm, _ = problem()
    perm[3], y[5] = 10**9, 5000
    out = m.mix(x, perm, 0.3)
    assert out[3].isnan().all() and not out[4:].isnan().any()
    rows = m.mixed_cross_entropy(z, y, torch.arange(64), 0.3, reduction="none")
    assert rows.isnan().nonzero().flatten().tolist() == [5]


def test_more_than_two_to_the_31_elements():
    if torch.cuda.get_device_properties(0).total_memory < 12 * 2**30:
        pytest.skip("needs 12 GiB")
    x = torch.zeros(3, 2**30 + 8, dtype=torch.bfloat16)
    x[:, -1] = torch.tensor([1.0, 2.0, 4.0])
    m.mix_(x, torch.tensor([1, 2, 0]), 0.5)
    assert x[:, -1].tolist() == [1.5, 3.0, 2.5] and not x[:, :-1].any()
