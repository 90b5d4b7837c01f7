"""DTensors in the mixed cross-entropies: values, gradients, placements, and what is refused."""

import pytest
import torch
import torch.distributed as dist

import mmix_fast as m
from tests.distributed import ranks as processes

B, D, C = 6, 5, 11
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch has no distributed")


def one_dimension(rank, ranks):
    from torch.distributed.tensor import (
        DTensor,
        Partial,
        Replicate,
        Shard,
        distribute_tensor,
        init_device_mesh,
    )

    mesh = init_device_mesh("cpu", (ranks,))
    z, y = torch.randn(B, C, dtype=torch.float64), torch.randint(0, C, (B,))
    perm, options = torch.randperm(B), {"label_smoothing": 0.1, "z_loss": 0.1}
    full = z.clone().requires_grad_()
    want = m.mixed_cross_entropy(full, y, perm, 0.3, **options)
    (truth,) = torch.autograd.grad(want, full)
    everywhere = [distribute_tensor(t, mesh, [Replicate()]) for t in (y, perm)]
    for placement, inplace in ((Shard(1), False), (Shard(1), True), (Replicate(), False)):
        for target, pairing in ((y, perm), everywhere):
            logits = distribute_tensor(z, mesh, [placement]).requires_grad_()
            loss = m.mixed_cross_entropy(
                logits * 1, target, pairing, 0.3, inplace_backward=inplace, **options
            )
            assert type(loss) is torch.Tensor
            torch.testing.assert_close(loss, want.detach(), rtol=1e-12, atol=1e-12)
            loss.backward()
            assert logits.grad.placements == (placement,)
            torch.testing.assert_close(logits.grad.full_tensor(), truth, rtol=1e-12, atol=1e-12)

    whole = [torch.randn(*s, dtype=torch.float64).requires_grad_() for s in ((B, D), (C, D), (C,))]
    want = m.mixed_linear_cross_entropy(*whole[:2], y, perm, 0.3, linear_bias=whole[2])
    truths = torch.autograd.grad(want * 2, whole)
    for of_weight in (Shard(0), Replicate()):
        places = Replicate(), of_weight, of_weight
        x, w, bias = (
            distribute_tensor(t.detach(), mesh, [p]).requires_grad_()
            for t, p in zip(whole, places, strict=True)
        )
        hidden = x * 1  # its gradient is partial on each rank, and DTensor sums it for x
        loss = m.mixed_linear_cross_entropy(hidden, w, y, perm, 0.3, linear_bias=bias)
        torch.testing.assert_close(loss, want.detach(), rtol=1e-12, atol=1e-12)
        (loss * 2).backward()
        for t, right in zip((x, w, bias), truths, strict=True):
            torch.testing.assert_close(t.grad.full_tensor(), right, rtol=1e-12, atol=1e-12)

    def says(error, words, call, *args, **more):
        with pytest.raises(error, match=words):
            call(*args, y, perm, 0.3, **more)

    loss, linear = m.mixed_cross_entropy, m.mixed_linear_cross_entropy
    wanted = r"logits must be replicated, or sharded over its classes, Shard\(1\)"
    for placement in (Shard(0), Partial()):
        says(ValueError, wanted, loss, DTensor.from_local(z, mesh, [placement]))
    logits = distribute_tensor(z, mesh, [Shard(1)])
    with pytest.raises(ValueError, match="target must be replicated, got"):
        m.mixed_cross_entropy(logits, distribute_tensor(y, mesh, [Shard(0)]), perm, 0.3)
    says(TypeError, "input must be a DTensor, as linear_weight.* unsharded first", linear, z, w)
    says(TypeError, "linear_weight must be a DTensor", linear, x, whole[1])
    split = distribute_tensor(whole[0].detach(), mesh, [Shard(0)])
    says(ValueError, "input must be replicated over the mesh", linear, split, w)
    columns = distribute_tensor(whole[1].detach(), mesh, [Shard(1)])
    says(
        ValueError, r"linear_weight must be replicated, or sharded.*Shard\(0\)", linear, x, columns
    )
    rows = distribute_tensor(whole[1].detach(), mesh, [Shard(0)])
    says(ValueError, "input, linear_weight must be on one mesh", linear, of_other_mesh(x, ranks), w)
    words = "linear_bias must have the placements of linear_weight"
    says(ValueError, words, linear, x, rows, linear_bias=bias)


def of_other_mesh(x, ranks):
    from torch.distributed.tensor import Replicate, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (ranks, 1))
    return distribute_tensor(x.detach().to_local(), mesh, [Replicate(), Replicate()])


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.deep)])
def test_one_dimension(tmp_path, ranks):
    processes.run(tmp_path, one_dimension, ranks, ranks)
