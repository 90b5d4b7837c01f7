"""Logits of some of the classes, and factors of the mean that are given, against dense float64."""

from itertools import pairwise

import pytest
import torch

from mmix_fast import reference
from mmix_fast.arithmetic import compute_dtype
from mmix_fast.triton import launch
from tests.support.cases import DTYPES, TOLERANCE
from tests.triton_interpreter.loss_cases import SHAPES, cells, draw

OPS = torch.ops.mmix_fast_triton
INF, NAN = float("inf"), float("nan")
ONES = torch.tensor([1.0, 1, 1, 0], dtype=torch.float64)


def as_rows(t):
    """(B, C, d1, ...) as (rows, C); labels as (rows,)."""
    return t.reshape(-1) if t.dtype == torch.int64 else t.movedim(1, -1).reshape(-1, t.shape[1])


def dense(z, y, perm, partner, lam, w, scales, ignore_index, reduction, eps, z_loss, cap):
    """(logits after the cap, targets times weights and scales, z-loss's coefficients), as rows."""
    classes, rows = z.shape[1], z.numel() // z.shape[1]
    own = lam.double().reshape(-1, 1).expand(-1 if lam.ndim else len(z), rows // len(z)).reshape(-1)
    weight = torch.ones(classes).double() if w is None else w.double()
    scales = scales if reduction == "mean" else ONES
    sides = as_rows(y), as_rows(y[perm] if partner is None else partner)
    t, z_coef = torch.zeros(rows, classes).double(), torch.zeros(rows).double()
    for side, coef, scale in zip(sides, (own, 1 - own), scales[:2], strict=True):
        there, q = coef != 0, side.double()
        if side.dtype == torch.int64:
            there = there & (side != ignore_index)
            q = torch.nn.functional.one_hot(torch.where(there, side, 0), classes).double()
        else:
            scale = scales[0]
        q = coef[:, None] * scale * weight * ((1 - eps) * q + eps / classes)
        t += torch.where(there[:, None], q, 0)
        z_coef += torch.where(there, coef * z_loss * scales[2], 0)
    z = as_rows(z)
    if cap:
        z = torch.where(z.isneginf(), z, cap * (torch.where(z.isneginf(), 0, z) / cap).tanh())
    return z, t, z_coef


def numbers(z, t):
    """What a shard gives of each row that counts."""
    top = torch.full((len(z),), -INF).double() if z.shape[1] == 0 else z.amax(1)
    top = torch.where(top == -INF, 0, top)
    shifted = z - top[:, None]
    dot = torch.where(t == 0, 0, t * shifted).sum(1)
    return torch.stack([top, shifted.exp().sum(1).log(), dot, t.sum(1)], 1)


def shards(z, inputs, ends):
    """(slice, its logits, what the ops take after them) of each."""
    y, perm, partner, *rest = inputs
    for first, end in pairwise(ends):
        held = slice(first, end)
        targets = (t if t is None or t.dtype == torch.int64 else t[:, held] for t in (y, partner))
        mine, theirs = targets
        yield held, z[:, held], (mine, perm, theirs, *rest, first, z.shape[1])


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "probabilities"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_and_gradients_of_shards(size, shape, dtype, labels):
    acc = compute_dtype(dtype)
    wide, narrow = ({"rtol": TOLERANCE[d], "atol": 4 * TOLERANCE[d]} for d in (acc, dtype))
    for extras, reduction, per_sample, weighted in cells(shape, dtype, labels, size, 1):
        z, *tensors = draw(shape, dtype, labels, per_sample, weighted)
        z[0, :2], z[1, -1] = -INF, -INF
        scales = torch.rand(4, dtype=torch.float64)
        inputs = (*tensors, scales, -100, reduction, *extras)  # for a mean alone
        z64 = z.double().requires_grad_()
        rows, t, z_coef = dense(z64, *tensors, scales, -100, reduction, *extras)
        live = torch.ones(len(rows), dtype=torch.bool) if not labels else t.sum(1) != 0
        every = numbers(rows, t)
        top, log_sum, dot, mass = every.unbind(1)
        lse = top + log_sum
        grad = torch.randn(z.shape[:1] + z.shape[2:] if reduction == "none" else ()).to(acc)
        loss = torch.where(live, mass * log_sum - dot + z_coef * lse * lse, 0)
        loss = (loss * grad.double().reshape(-1)).sum()
        (want,) = torch.autograd.grad(loss, z64)
        stats = every[:, [0, 1, 3]].detach().to(acc)
        for held, shard, call in shards(z, inputs, [0, shape[1] // 3, shape[1]]):
            part = OPS.cross_entropy_part(shard, *call).double()
            true = numbers(rows[:, held], t[:, held]).detach()
            torch.testing.assert_close(part, torch.where(live[:, None], true, 0), **wide)
            got = OPS.cross_entropy_backward(grad, stats, shard, *call)
            torch.testing.assert_close(got.double(), want[:, held], **narrow)
            OPS.cross_entropy_backward_(grad, stats, shard, *call)
            assert torch.equal(shard, got)


def plain(y, perm, lam=0.3, *, reduction="sum", eps=0.0, scales=None, partner=None):
    """The inputs of a loss without weights, z-loss or cap."""
    options = (-100, reduction, eps, 0.0, 0.0)
    return (y, perm, partner, torch.as_tensor(lam), None, scales, *options)


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "probabilities"])
def test_shards_whose_logits_are_masked_or_nan_or_missing(size, labels):
    z = torch.randn(5, 9)
    z[0, :6] = z[1, 3:] = z[2] = -INF
    z[3, 4] = NAN
    y = torch.tensor([7, 1, 0, 8, -100])
    if not labels:  # a target of 0 where the logit is -inf
        y = torch.where(z == -INF, 0, torch.rand(5, 9))
    z[4, 0] = NAN  # in a row that does not count, if there are labels
    inputs = plain(y, torch.arange(5))
    for held, shard, call in shards(z, inputs, [0, 3, 3, 9]):
        part = OPS.cross_entropy_part(shard, *call)
        empty = held.start == held.stop
        for r in range(5):
            masked = bool((shard[r] == -INF).all())
            if r == 4 and labels:
                assert part[r].tolist() == [0, 0, 0, 0]
            elif masked:
                assert part[r, :2].tolist() == [0, -INF]
                assert empty <= (part[r, 2:].tolist() == [0, 0])
            else:
                assert part[r, 1].isnan() == shard[r].isnan().any()
        if labels:  # of row 0 in the last shard; of row 2 in the first, at a logit of -inf
            assert part[0, 3] == (held.stop == 9)
            assert part[2, 2] == (-INF if held == slice(0, 3) else 0)
        else:
            assert part[2, 2:].tolist() == [0, 0]
        stats = torch.tensor([[0.5, 1.0, 1.0]]).repeat(5, 1)
        back = OPS.cross_entropy_backward(torch.ones(()), stats, shard, *call)
        lost = shard.isnan()
        lost[4] &= not labels
        assert back.shape == shard.shape and torch.equal(back.isnan(), lost)


@pytest.mark.parametrize("bad", ["label", "partner", "perm"])
def test_bad_labels_and_perm_poison_their_rows_in_every_shard(size, bad):
    y, perm = torch.tensor([0, 5, 9, 3]), torch.tensor([0, 1, 3, 2])
    partner, lost = None, torch.tensor([False, True, False, False])
    if bad == "label":
        y[1] = 10
    elif bad == "partner":
        partner, perm = torch.tensor([0, -1, 5, 3]), None
    else:
        perm[1] = 2**40
    z = torch.randn(4, 10)
    for _, shard, call in shards(z, plain(y, perm, partner=partner), [0, 4, 4, 10]):
        part = OPS.cross_entropy_part(shard, *call)
        assert torch.equal(part[:, 3].isnan(), lost)
        back = OPS.cross_entropy_backward(torch.ones(()), torch.ones(4, 3), shard, *call)
        assert torch.equal(back.isnan(), lost[:, None].expand_as(back))


def test_shards_in_other_layouts(size):
    y, perm = torch.randint(0, 12, (5, 3, 2)), torch.randperm(5)
    inputs = plain(y, perm, torch.rand(5), eps=0.1)
    made = {
        "channels_last": torch.randn(5, 3, 2, 4).permute(0, 3, 1, 2),
        "transposed": torch.randn(5, 4, 2, 3).transpose(2, 3),
        "sliced": torch.randn(5, 4, 3, 4)[..., ::2],
    }
    stats = torch.rand(30, 3)
    for name, z in made.items():
        want = [
            OPS.cross_entropy_part(z.contiguous(), *inputs, 3, 12),
            OPS.cross_entropy_backward(torch.ones(()), stats, z.contiguous(), *inputs, 3, 12),
        ]
        got = OPS.cross_entropy_part(z, *inputs, 3, 12)
        torch.testing.assert_close(got, want[0], msg=name)
        OPS.cross_entropy_backward_(torch.ones(()), stats, z, *inputs, 3, 12)
        torch.testing.assert_close(z, want[1], msg=name)


def test_the_mean_of_a_shard_counts_the_labels_of_all_classes(monkeypatch):
    """Without given factors: computed by each program, and by a kernel of their own."""
    z, y, perm, w = torch.randn(6, 3), torch.tensor([0, 1, 5, 8, 8, -100]), None, torch.rand(9)
    inputs = (y, torch.randperm(6), perm, torch.tensor(0.3), w, None, -100, "mean", 0.0, 0.0, 0.0)
    each = 1 / w[y[:5]].double().sum()
    given = (*inputs[:5], torch.stack([each, each, each, each * 0]), *inputs[6:])
    want = OPS.cross_entropy_part(z, *given, 4, 9)
    torch.testing.assert_close(OPS.cross_entropy_part(z, *inputs, 4, 9), want)
    monkeypatch.setattr(launch, "KNOWN_ROWS", 2)
    torch.testing.assert_close(OPS.cross_entropy_part(z, *inputs, 4, 9), want)


def inverse_divisors(y, partner, lam, w, ignore_index=-100):
    """The scales of a mean over the whole batch."""
    own = lam.double().expand(len(y))
    total = {"own": 0, "other": 0, "joint": 0, "z": 0}
    for name, label, coef in (("own", y, own), ("other", partner, 1 - own)):
        counted = label != ignore_index
        total[name] = (w.double()[label.clamp(min=0)] * counted).sum()
        total["joint"] += (coef * w.double()[label.clamp(min=0)] * counted).sum()
        total["z"] += (coef * counted).sum()
    two = (total["joint"],) * 2 if lam.ndim else (total["own"], total["other"])
    return torch.stack([1 / two[0], 1 / two[1], 1 / total["z"], torch.zeros(()).double()])


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_with_the_factors_of_the_whole_batch(size, dtype, per_sample):
    z, y, _, partner, lam, w = draw((6, 11), dtype, True, per_sample, True)
    partner[4:] = -100
    z64 = z.double().requires_grad_()
    options = {"weight": w.double(), "label_smoothing": 0.1, "z_loss": 0.05}
    want = reference.mixed_cross_entropy(z64, y, None, lam.double(), target_b=partner, **options)
    (truth,) = torch.autograd.grad(want, z64)
    scales, loss = inverse_divisors(y, partner, lam, w), 0
    for rows in (slice(0, 2), slice(2, 6)):
        own = lam[rows] if per_sample else lam
        call = (y[rows], None, partner[rows], own, w, scales, -100, "mean", 0.1, 0.05, 0.0, 0, 0)
        _, stats, _ = OPS.cross_entropy(z[rows], *call, None)
        back = OPS.cross_entropy_backward(torch.ones_like(stats[0, 0]), stats, z[rows], *call)
        loss = loss + OPS.cross_entropy_(z[rows], *call)
        near = TOLERANCE[dtype]
        torch.testing.assert_close(z[rows].double(), truth[rows], rtol=near, atol=near)
        torch.testing.assert_close(back.double(), truth[rows], rtol=near, atol=near)
    near = TOLERANCE[loss.dtype]
    torch.testing.assert_close(loss.double(), want.detach(), rtol=near, atol=near)


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "probabilities"])
def test_given_factors_of_nan_and_a_mean_over_nothing(size, labels):
    z, y = torch.randn(3, 5), torch.tensor([0, 2, 4])
    partner = torch.full((3,), -100)
    if not labels:
        y, partner = torch.rand(3, 5), torch.full((3, 5), NAN)
    own, with_z = torch.ones(3), (-100, "mean", 0.1, 0.1, 0.0, 0, 0)
    want = OPS.cross_entropy(z, y, None, y, own, None, None, *with_z, 1.0)
    scales = torch.tensor([1 / 3, NAN, 1 / 3, 0], dtype=torch.float64)
    for lam in (own, torch.tensor(1.0)):  # the partners are absent, so their factor is too
        got = OPS.cross_entropy(z, y, None, partner, lam, None, scales, *with_z, 1.0)
        torch.testing.assert_close(got, want)
    scales[3] = NAN
    loss, _, gradient = OPS.cross_entropy(z, y, None, partner, own, None, scales, *with_z, 1.0)
    assert loss.isnan() and torch.equal(gradient, got[2])
    nothing = (y[:0], None, partner[:0], own[:0], None)
    for over, wanted in ((None, NAN), (scales, NAN), (ONES, 0.0)):
        loss = OPS.cross_entropy_(z[:0], *nothing, over, *with_z)
        torch.testing.assert_close(loss, torch.tensor(wanted), equal_nan=True)
    assert OPS.cross_entropy_(z[:0], *nothing, None, -100, "sum", *with_z[2:]) == 0
