"""Losses of logits that are cut into shards of the classes, joined from what the shards give.

Each check returns True if the joined loss and the shards' gradients are those of the whole logits,
and if each shard gives what the C++ op gives.
"""

from itertools import pairwise

import torch

from tests.cuda_emulation.cross_entropy_checks import (
    CALM,
    CLUSTERS,
    H100,
    MANY,
    OPS,
    SEGMENTS,
    arguments,
    close,
    dense,
    make,
    sliced,
    truth,
)
from tests.support.cases import TOLERANCE

CPP = torch.ops.mmix_fast
INF = float("inf")

# As WAYS of cross_entropy_checks; the kernel is that of the longest shard, 7/8 of the classes.
WAYS = {
    "tile": (CALM, "tiles", lambda dtype: torch.randn(70, 10)),
    "tile_of_warps": (CALM, "tiles", dense(19, 900, odd=1)),
    "tile_pixels": (CALM, "tiles", lambda dtype: torch.randn(3, 7, 5, 4)),
    "map": (CALM, "tiles", lambda dtype: torch.randn(3, 7, 16, 24)),  # no maps of shards
    "warp": (CALM, "rows", dense(MANY, 1840)),
    "warp_odd": (CALM, "rows", dense(MANY, 1840, odd=1)),
    "block": (CALM, "rows", dense(3, 9000, odd=3)),
    "unaligned": (CALM, "rows", sliced(3, 8000)),
    "one_row": (H100, "rows", dense(1, 9000)),
    "far_classes": (CALM, "rows", lambda dtype: torch.randn(5000, 3).t()),
    "cluster": (CLUSTERS, "rows", dense(2, 60_000, odd=1)),
    "segments": (SEGMENTS, "rows", dense(2, 60_000, odd=1)),
    "segments_unaligned": (SEGMENTS, "rows", sliced(2, 40_000)),
    "many_rows": (CALM, "tiles", lambda dtype: torch.randn(8200, 2)),
}


def cut(z, *tensors):
    """Uneven shards, one of them empty and one of a single class: (first class, slices of all).

    The shards of z are contiguous and views in turn.
    """
    classes = z.shape[1]
    ends = [0, classes // 8, classes // 8, classes - 1, classes]
    for number, (first, end) in enumerate(pairwise(ends)):
        part = z[:, first:end]
        yield (
            first,
            part.contiguous() if number % 2 == classes % 2 else part,
            *(t[:, first:end] if t is not None and t.is_floating_point() else t for t in tensors),
        )


def parts_of(z, y, perm, lam, target_b=None, **kw):
    """The parts of z's shards and, for each shard, its logits and the arguments after them."""
    parts, calls = [], []
    for first, shard, target, b in cut(z, y, target_b):
        args = arguments(
            target, perm, lam, target_b=b, class_offset=first, num_classes=z.shape[1], **kw
        )
        parts.append(OPS.cross_entropy_part(shard, *args))
        calls.append((shard, args))
    return parts, calls


def join(parts):
    """(stats of the backward, sum(t*(z - max))) over all classes."""
    top = torch.stack([torch.where(p[:, 1] == -INF, -INF, p[:, 0]) for p in parts]).amax(0)
    top = torch.where(top == -INF, 0, top)
    log_sum = torch.stack([p[:, 1] + p[:, 0] - top for p in parts]).logsumexp(0)
    shifts = [torch.where(p[:, 3] == 0, 0, p[:, 3] * (p[:, 0] - top)) for p in parts]
    dot = torch.stack([p[:, 2] + shift for p, shift in zip(parts, shifts, strict=True)]).sum(0)
    mass = torch.stack([p[:, 3] for p in parts]).sum(0)
    return torch.stack([top, log_sum, mass], -1), dot


def counted(y, perm, lam, ignore_index=-100, target_b=None):
    """For each row, the λ of its labels that count; also whether its label and its partner's do."""
    other = y[perm] if target_b is None else target_b
    own = lam.double().expand(len(y)).view(-1, *[1] * (y.dim() - 1)).expand(y.shape)
    mine, theirs = y != ignore_index, other != ignore_index
    return own * mine + (1 - own) * theirs, mine, theirs


def scales_of(y, perm, lam, weight=None, z_loss=0.0, reduction="mean", **kw):
    """The factors of the mean, as the raw ops take them."""
    if y.is_floating_point():
        each = 1 / (y.numel() // y.shape[1]) if reduction == "mean" else 1.0
        return torch.tensor([each, each, each, 0], dtype=torch.float64)
    if reduction != "mean":
        return torch.tensor([1.0, 1.0, 1.0, 0], dtype=torch.float64)
    sums, mine, theirs = counted(y, perm, lam)
    w = torch.ones(int(y.max()) + 1) if weight is None else weight
    w = w.double()[y.clamp(min=0)]
    own, other = (w * mine).sum(), (w[perm] * theirs).sum()
    if lam.dim():
        lams = lam.double().view(-1, *[1] * (y.dim() - 1))
        own = other = (lams * w * mine + (1 - lams) * w[perm] * theirs).sum()
    return torch.stack([1 / own, 1 / other, 1 / sums.sum(), torch.zeros(()).double()])


def loss_of_parts(parts, z_coef):
    """(each row's loss, stats)."""
    stats, dot = join([p.double() for p in parts])
    top, log_sum, mass = stats.unbind(-1)
    squared = torch.where(z_coef == 0, 0, z_coef * (top + log_sum) ** 2)
    return torch.where(mass == 0, 0, mass * log_sum) - dot + squared, stats


def run(way, kind, dtype, reduction, per_sample, given):
    """given: whether the factors of the mean are given, or the kernels make them."""
    (z, y, perm, lam), kw = make(way, kind, dtype, per_sample, WAYS)
    kw["reduction"] = reduction
    if len(z) == 1 and not y.is_floating_point():
        y.fill_(z.shape[1] // 2)  # make() has it ignored
    of_mean = scales_of(y, perm, lam, **kw)
    scales = of_mean if given and reduction == "mean" else None
    parts, calls = parts_of(z, y, perm, lam, scales=scales, **kw)
    narrow = TOLERANCE[dtype]
    wide = TOLERANCE[parts[0].dtype]
    good = all(
        close(part, CPP.cross_entropy_part(shard, *args).double(), wide)
        for part, (shard, args) in zip(parts, calls, strict=True)
    )
    lams = torch.ones(y.numel() // z.shape[1]) if y.is_floating_point() else None
    lams = counted(y, perm, lam)[0].flatten() if lams is None else lams
    z_coef = lams.double() * kw.get("z_loss", 0) * of_mean[2]
    rows, stats = loss_of_parts(parts, z_coef)
    rows = rows.view(z.shape[:1] + z.shape[2:])
    loss = rows if reduction == "none" else rows.sum()
    upstream = torch.rand(loss.shape).to(parts[0].dtype)
    want, want_gradient = truth(z, y, perm, lam, upstream, **kw)
    good &= close(loss, want, wide)
    stats = stats.to(parts[0].dtype)
    for shard, args in calls:
        slice_ = want_gradient[:, args[-2] : args[-2] + shard.shape[1]]
        before = shard.clone()
        gradient = OPS.cross_entropy_backward(upstream, stats, shard, *args)
        good &= close(gradient, slice_, narrow) and torch.equal(shard, before)
        in_place = shard.clone(memory_format=torch.preserve_format)
        OPS.cross_entropy_backward_(upstream, stats, in_place, *args)
        good &= torch.equal(in_place, gradient)
    return good


def check(emulator, way, kind, dtype, reduction="mean", per_sample=False, given=True):
    emulator.set_device(*WAYS[way][0])
    try:
        return run(way, kind, dtype, reduction, per_sample, given)
    finally:
        emulator.set_device(*H100)


def run_all(emulator, dtype):
    """True if every check passes."""
    return all(
        check(emulator, way, kind, dtype, reduction, per_sample)
        for way in ("tile", "block", "cluster", "segments")
        for kind, reduction, per_sample in (
            ("smooth", "mean", True),
            ("probabilities", "none", False),
        )
    )


def run_few(emulator, dtype):
    """Fewer checks, for ThreadSanitizer, which is slow."""
    return all(
        check(emulator, way, kind, dtype, per_sample=True)
        for way, kind in (
            ("tile", "weighted"),
            ("block", "capped"),
            ("cluster", "smooth"),
            ("segments", "probabilities"),
        )
    )
