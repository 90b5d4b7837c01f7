"""Classes beyond one matrix, on a GPU: the linear loss, shards, NCCL, and no wait of the host."""

import itertools

import pytest
import torch
import torch.distributed as dist

import mmix_fast as m
from mmix_fast import distributed
from tests.support.cases import TOLERANCE
from tests.support.sharded import of_every_shard

pytestmark = pytest.mark.gpu
N, D, C = 300, 64, 1000


def batch(dtype):
    x, w = torch.randn(N, D).to(dtype), (torch.randn(C, D) / 8).to(dtype)
    return x.requires_grad_(), w.requires_grad_(), torch.randint(0, C, (N,)), torch.randperm(N)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_linear_loss(dtype):
    """Its products in float32 of 16-bit matrices are cuBLAS's: nothing else runs them."""
    x, w, y, perm = batch(dtype)
    with m.use_backend("reference"):
        exact = [t.detach().double().requires_grad_() for t in (x, w)]
        want = m.mixed_linear_cross_entropy(*exact, y, perm, 0.3, label_smoothing=0.1)
        truths = torch.autograd.grad(3 * want, exact)
    loss = m.mixed_linear_cross_entropy(x, w, y, perm, 0.3, label_smoothing=0.1, chunk_size=128)
    near = max(TOLERANCE[dtype], 1e-5)
    torch.testing.assert_close(loss.double(), want.detach(), rtol=near, atol=near)
    for got, truth in zip(torch.autograd.grad(3 * loss, (x, w)), truths, strict=True):
        assert got.dtype == dtype
        assert (got.double() - truth).norm() <= 2 * near * truth.norm()


def test_the_linear_loss_in_a_cuda_graph_follows_its_inputs():
    x, w, y, perm = batch(torch.bfloat16)
    lam = torch.tensor(0.3)

    def step():
        return torch.autograd.grad(m.mixed_linear_cross_entropy(x, w, y, perm, lam), (x, w))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    lam.fill_(0.9)
    perm.copy_(torch.randperm(N))
    graph.replay()
    for got, want in zip(captured, step(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shards(dtype):
    z, y, perm = torch.randn(N, C).to(dtype), torch.randint(0, C, (N,)), torch.randperm(N)
    full, cuts = z.clone().requires_grad_(), [0, 333, 333, C]
    want = m.mixed_cross_entropy(full, y, perm, 0.3, label_smoothing=0.1, z_loss=0.1)
    (truth,) = torch.autograd.grad(want, full)
    pieces = [z[:, a:b].clone().requires_grad_() for a, b in itertools.pairwise(cuts)]
    losses, _ = of_every_shard(pieces, cuts, y, perm, 0.3, label_smoothing=0.1, z_loss=0.1)
    for loss, piece, begin in zip(losses, pieces, cuts, strict=False):
        torch.testing.assert_close(loss, want.detach(), rtol=1e-5, atol=1e-5)
        (got,) = torch.autograd.grad(loss, piece)
        near = TOLERANCE[dtype]
        right = truth[:, begin : begin + piece.shape[1]]
        torch.testing.assert_close(got, right, rtol=near, atol=near)


def test_nccl_and_no_wait_of_the_host(tmp_path):
    if not dist.is_nccl_available():
        pytest.skip("torch was built without NCCL")
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        z, y, perm = torch.randn(N, C), torch.randint(0, C, (N,)), torch.randperm(N)
        z.requires_grad_()

        def step(offset=0):
            return distributed.mixed_cross_entropy(
                z, y, perm, 0.3, num_classes=C, class_offset=offset
            )

        step()  # NCCL makes its communicator in the first call
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss = step()
            (got,) = torch.autograd.grad(loss, z)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        want = m.mixed_cross_entropy(z, y, perm, 0.3)
        torch.testing.assert_close(loss, want)
        torch.testing.assert_close(got, torch.autograd.grad(want, z)[0])
        with pytest.raises(ValueError, match="class_offset"):
            step(1)  # known on this rank; the others get NaN
    finally:
        dist.destroy_process_group()
