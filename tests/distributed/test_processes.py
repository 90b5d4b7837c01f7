"""Sharded classes in real processes: values, collectives, and what all ranks say of bad shards."""

import pytest
import torch
import torch.distributed as dist

import mmix_fast as m
from benchmarks.wire import Wire
from mmix_fast import distributed
from tests.distributed import ranks as processes

B, D, C = 7, 5, 11
CUTS = {2: [0, 7, 11], 4: [0, 4, 4, 7, 11]}  # uneven; one of four ranks has no class
EVERY = {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0}
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch has no distributed")


def batch():
    y = torch.randint(0, C, (B,))
    y[2] = -100
    return torch.randn(B, C, dtype=torch.float64), y, torch.randperm(B)


def losses(rank, ranks):
    a, b = CUTS[ranks][rank : rank + 2]
    where = {"num_classes": C, "class_offset": a}
    z, y, perm = batch()
    soft, lams = torch.rand(B, C, dtype=torch.float64), torch.rand(B, dtype=torch.float64)
    weight = torch.rand(C, dtype=torch.float64)
    for reduction in ("mean", "sum", "none"):
        for target, pairing, lam, options in (
            (y, perm, 0.3, {}),
            (y, None, lams, {"target_b": y.flip(0), "weight": weight, **EVERY}),
            (soft, perm, lams, EVERY),
            (m.MixedTarget(y, perm, 0.3, label_smoothing=0.1, num_classes=C), None, None, {}),
        ):
            full, local = z.clone().requires_grad_(), z[:, a:b].clone().requires_grad_()
            want = m.mixed_cross_entropy(full, target, pairing, lam, reduction=reduction, **options)
            up = torch.rand_like(want)
            (truth,) = torch.autograd.grad(want, full, up)
            with Wire() as forward:
                loss = distributed.mixed_cross_entropy(
                    local, target, pairing, lam, reduction=reduction, **where, **options
                )
            with Wire() as backward:
                (got,) = torch.autograd.grad(loss, local, up)
            torch.testing.assert_close(loss, want.detach(), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(got, truth[:, a:b], rtol=1e-12, atol=1e-12)
            assert forward.sent == [32 * (B + 1)] and backward.sent == []
    with Wire() as seen, torch.no_grad():
        distributed.mixed_cross_entropy(z[:, a:b].float(), y, perm, 0.3, **where)
    assert seen.sent == [16 * (B + 1)]  # float32: 16 bytes a row, and one row to compare shards
    _linear(rank, a, b, where)


def _linear(rank, a, b, where):
    _, y, perm = batch()
    whole = [torch.randn(*s, dtype=torch.float64).requires_grad_() for s in ((B, D), (C, D), (C,))]
    x, w, bias = whole
    soft = torch.rand(B, C, dtype=torch.float64)
    for target, options in ((y, {}), (y, {"reduction": "sum", **EVERY}), (soft, EVERY)):
        want = m.mixed_linear_cross_entropy(x, w, target, perm, 0.3, linear_bias=bias, **options)
        truths = torch.autograd.grad(2 * want, whole)
        mine = [t.detach().requires_grad_() for t in (x, w[a:b], bias[a:b])]
        with Wire() as forward:
            loss = distributed.mixed_linear_cross_entropy(
                mine[0], mine[1], target, perm, 0.3, linear_bias=mine[2], chunk_size=3, **where,
                **options,
            )  # fmt: skip
        with Wire() as backward:
            of_x, of_w, of_bias = torch.autograd.grad(2 * loss, mine)
        assert len(forward.sent) == 1 + 3 and backward.sent == []
        dist.all_reduce(of_x)
        torch.testing.assert_close(loss, want)
        wanted = truths[0], truths[1][a:b], truths[2][a:b]
        for got, truth in zip((of_x, of_w, of_bias), wanted, strict=True):
            torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match="no double backward"):
        loss = distributed.mixed_linear_cross_entropy(mine[0], mine[1], y, perm, 0.3, **where)
        torch.autograd.grad(loss, mine[0], create_graph=True)


@pytest.mark.parametrize("ranks", [2, 4])
def test_losses_and_collectives(tmp_path, ranks):
    processes.run(tmp_path, losses, ranks, ranks)


def refusals(rank):
    z, y, perm = batch()
    a, b = CUTS[2][rank : rank + 2]

    def says(error, words, logits=z[:, a:b], target=y, num_classes=C, class_offset=a, **options):
        # All ranks call, so that one which did not raise would wait, and fail by its timeout.
        for backend in ("cpp", "reference"):
            with m.use_backend(backend), pytest.raises(error, match=words):
                distributed.mixed_cross_entropy(
                    logits,
                    target,
                    perm,
                    0.3,
                    num_classes=num_classes,
                    class_offset=class_offset,
                    **options,
                )

    says(ValueError, "num_classes must be the same on all ranks, got 11, 12", num_classes=C + rank)
    cover = r"the shards of all ranks must cover the classes \[0, 11\) once, got "
    says(ValueError, cover + r"\[0, 7\), \[3, 7\)", class_offset=3 * rank)  # overlap and a gap
    says(ValueError, cover + r"\[0, 7\), \[8, 12\)", class_offset=8 * rank)  # past the end
    says(ValueError, cover + r"\[-1, 6\), \[6, 10\)", class_offset=a - 1)
    says(ValueError, cover + r"\[0, 6\), \[7, 11\)", logits=z[:, a : b - (rank == 0)])
    # A label that is bad on one rank alone: the other is told.
    bad = torch.full((B,), C if rank else 0)
    words = r"target must hold labels in \[0, 10\]" if rank else "rank 1 of the group raised"
    says(IndexError if rank else RuntimeError, words, target=bad)
    # The same on all ranks: each raises its own error.
    says(IndexError, "target must hold labels", target=torch.full((B,), C))
    says(ValueError, r"weight must be float64 or float32 of shape \(11,\)", weight=torch.rand(3))
    says(ValueError, r"target must have shape \(7, 11\)", target=torch.rand(B, 4))
    says(TypeError, "local_logits must be a Tensor, got list", logits=[1.0])
    says(TypeError, "class_offset must be an int", class_offset=0.5)
    says(ValueError, "num_classes must be at least 1", num_classes=0)
    says(TypeError, "group must be a ProcessGroup or None, got int", group=3)
    of_first = dist.new_group([0])
    if rank:
        with pytest.raises(ValueError, match="group must have this process, rank 1, as a member"):
            distributed.mixed_cross_entropy(
                z, y, perm, 0.3, group=of_first, num_classes=C, class_offset=0
            )
    else:
        loss = distributed.mixed_cross_entropy(
            z, y, perm, 0.3, group=of_first, num_classes=C, class_offset=0
        )
        torch.testing.assert_close(loss, m.mixed_cross_entropy(z, y, perm, 0.3))
    w = torch.randn(b - a, D)
    x = torch.randn(B, D)
    with pytest.raises(ValueError, match="num_classes must be the same on all ranks"):
        distributed.mixed_linear_cross_entropy(
            x, w, y, perm, 0.3, num_classes=C + 3000 * rank, class_offset=a
        )
    label = torch.full((B,), C if rank else 0)
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(IndexError if rank else RuntimeError, match=r"target must|rank 1 of"):
            distributed.mixed_linear_cross_entropy(
                x.to(dtype), w.to(dtype), label, perm, 0.3, num_classes=C, class_offset=a
            )
    # After all this, the ranks are still in step.
    loss = distributed.mixed_cross_entropy(z[:, a:b], y, perm, 0.3, num_classes=C, class_offset=a)
    torch.testing.assert_close(loss, m.mixed_cross_entropy(z, y, perm, 0.3))


def test_every_rank_says_what_is_wrong(tmp_path):
    processes.run(tmp_path, refusals, 2)


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match=r"torch\.distributed must be initialized"):
        distributed.mixed_cross_entropy(
            torch.randn(2, 3), torch.zeros(2, dtype=torch.int64), torch.arange(2), 0.3,
            num_classes=3, class_offset=0,
        )  # fmt: skip


def compiled(rank):
    z, y, perm = batch()
    a, b = CUTS[2][rank : rank + 2]

    def step(local, lam):
        return distributed.mixed_cross_entropy(
            local, y, perm, lam, num_classes=C, class_offset=a, **EVERY
        )

    local = z[:, a:b].float().requires_grad_()
    graph = torch.compile(step, fullgraph=True)
    for lam in (0.3, 0.6, 1.0):
        got, want = graph(local, lam), step(local, lam)
        torch.testing.assert_close(got, want)
        of_got, of_want = (torch.autograd.grad(loss, local)[0] for loss in (got, want))
        torch.testing.assert_close(of_got, of_want)


@pytest.mark.deep
def test_compiled(tmp_path):
    processes.run(tmp_path, compiled, 2)
