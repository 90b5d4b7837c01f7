"""Small losses that run every kernel, code path and barrier.

Each check returns True if the result is right. The tests run them with threads in random order,
with one barrier disabled (then a check must fail), and under ThreadSanitizer.
"""

import torch

from mmix_fast import reference
from tests.cuda_emulation.emulation import NAMESPACE
from tests.support.cases import TOLERANCE

OPS = getattr(torch.ops, NAMESPACE)
H100 = (132, 227 * 1024, 1)  # multiprocessors, shared bytes of a block, whether it has clusters
# With two multiprocessors, MANY rows are not spread over more lanes than they need. With little
# shared memory, a row takes several blocks of a cluster, or several segments where there are no
# clusters; and the classes of a pixel take several lanes.
LANES = (2, 48 * 1024, 0)
CALM, CLUSTERS, SEGMENTS = (2, 227 * 1024, 1), (2, 22 * 1024, 1), (2, 22 * 1024, 0)
MANY = 2 * 1024 // 32 + 1  # the least is a warp for each row, see plan_rows()


def dense(rows, row_bytes, odd=0):
    return lambda dtype: torch.randn(rows, row_bytes // dtype.itemsize + odd)


def sliced(rows, row_bytes):
    """Row stride larger than the number of classes: logits and gradient are aligned differently."""
    return lambda dtype: torch.randn(rows, row_bytes // dtype.itemsize + 3)[:, 1:-1]


# Code path -> (device, kernel, function of a dtype that makes float32 logits).
WAYS = {
    "tile": (CALM, "tiles", lambda dtype: torch.randn(70, 10)),
    "tile_of_warps": (CALM, "tiles", dense(19, 900, odd=1)),
    "tile_pixels": (CALM, "tiles", lambda dtype: torch.randn(3, 7, 5, 4)),
    "map": (CALM, "maps", lambda dtype: torch.randn(3, 7, 16, 24)),
    "map_of_lanes": (LANES, "maps", lambda dtype: torch.randn(3, 11, 36, 40)),
    "tile_apart": (CALM, "tiles", sliced(21, 300)),
    "warps": (CALM, "rows", dense(19, 1040)),
    "warp": (CALM, "rows", dense(MANY, 1040)),
    "warp_odd": (CALM, "rows", dense(MANY, 1040, odd=1)),
    "block": (CALM, "rows", dense(3, 9000, odd=3)),
    "unaligned": (CALM, "rows", sliced(3, 6000)),
    "far_classes": (CALM, "rows", lambda dtype: torch.randn(5000, 3).t()),
    "cluster": (CLUSTERS, "rows", dense(2, 20_000, odd=1)),
    "segments": (SEGMENTS, "rows", dense(2, 40_000, odd=1)),
    "segments_unaligned": (SEGMENTS, "rows", sliced(2, 30_000)),
    "many_rows": (CALM, "tiles", lambda dtype: torch.randn(8200, 2)),
}
KINDS = ("labels", "smooth", "weighted", "capped", "probabilities")


def kernel_of(way, kind):
    """The kernel of half-precision logits. Maps have no dense spread and no softcap."""
    kernel = WAYS[way][1]
    return "tiles" if kernel == "maps" and kind not in ("labels", "smooth") else kernel


def make(way, kind, dtype, per_sample, ways=WAYS):
    """((logits, target, perm, lam), keyword arguments of the loss)."""
    z = 3 * ways[way][2](dtype)
    z = (
        z.to(dtype)
        if z.is_contiguous()
        else torch.empty_strided(z.shape, z.stride(), dtype=dtype).copy_(z)
    )
    batch, classes = z.shape[:2]
    rows = z.shape[:1] + z.shape[2:]
    y = torch.randint(0, classes, rows)
    y.view(-1)[::7] = -100
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    lam = torch.rand(batch if per_sample else ()).to(acc)
    if per_sample:
        lam[::3], lam[1::3] = 0, 1
    kw = {}
    if kind != "labels":
        kw["label_smoothing"] = 0.1
    if kind in ("weighted", "probabilities"):
        kw["weight"] = torch.rand(classes)
    if kind == "capped":
        kw.update(softcap=5.0, z_loss=0.01)
    if kind == "probabilities":
        y = torch.rand(z.shape)
    return (z, y, torch.randperm(batch), lam), kw


def arguments(target, perm, lam, target_b=None, weight=None, ignore_index=-100, reduction="mean",
              label_smoothing=0.0, z_loss=0.0, softcap=0.0, scales=None, class_offset=0,
              num_classes=0):  # fmt: skip
    """The op's arguments after the logits."""
    return (target, perm, target_b, lam, weight, scales, ignore_index, reduction, label_smoothing,
            z_loss, softcap, class_offset, num_classes)  # fmt: skip


def loss_of(z, y, perm, lam, **kw):
    """((loss, stats, gradient), the arguments after the logits)."""
    acc = torch.float64 if z.dtype == torch.float64 else torch.float32
    args = arguments(y, perm, torch.as_tensor(lam, dtype=acc), **kw)
    return OPS.cross_entropy(z, *args, 1.0), args


def truth(z, y, perm, lam, upstream, **kw):
    """The reference loss and its gradient, in float64."""
    leaf = z.to(torch.float64, copy=True).requires_grad_()
    y = y.double() if y.is_floating_point() else y
    if kw.get("weight") is not None:
        kw["weight"] = kw["weight"].double()
    loss = reference.mixed_cross_entropy(leaf, y, perm, lam.double(), **kw)
    (grad,) = torch.autograd.grad(loss, leaf, upstream.double().expand(loss.shape))
    return loss.detach(), grad


def close(got, want, tolerance):
    return torch.allclose(got.double(), want, rtol=tolerance, atol=tolerance, equal_nan=True)


def run(way, kind, dtype, reduction, per_sample, forward_only):
    """The forward, with and without its gradient, and the three backward ops."""
    (z, y, perm, lam), kw = make(way, kind, dtype, per_sample)
    kw["reduction"] = reduction
    args = arguments(y, perm, lam, **kw)
    before = z.clone()
    loss, stats, gradient = OPS.cross_entropy(z, *args, 1.0)
    want, want_gradient = truth(z, y, perm, lam, torch.ones(()), **kw)
    wide, narrow = TOLERANCE[loss.dtype], TOLERANCE[dtype]
    good = close(loss, want, wide) and close(gradient, want_gradient, narrow)
    if reduction != "none":
        good &= in_place_agrees(z, args, loss, gradient)
        z.copy_(before)
    if forward_only:
        return good
    alone = OPS.cross_entropy(z, *args, None)
    good &= torch.equal(alone[0], loss) and torch.equal(alone[1], stats) and alone[2].numel() == 0

    upstream = torch.rand_like(loss)
    upstream.view(-1)[::2] = 1  # rows whose gradient is already right
    upstream.view(-1)[1::4] = 0
    _, want_gradient = truth(z, y, perm, lam, upstream, **kw)
    again = OPS.cross_entropy_backward(upstream, stats, z, *args)
    good &= close(again, want_gradient, narrow) and torch.equal(z, before)
    OPS.cross_entropy_rescale_(gradient, upstream, stats, z, *args)
    OPS.cross_entropy_backward_(upstream, stats, z, *args)
    return good and torch.equal(gradient, again) and torch.equal(z, again)


def in_place_agrees(z, args, loss, gradient):
    """Whether the gradient over the logits, in the loss's own pass, is the one beside them.

    Bit for bit, unless the gradient beside them is in another layout: then by another kernel.
    """
    same = gradient.stride() == z.stride()
    found = OPS.cross_entropy_(z, *args)
    if same:
        return torch.equal(found, loss) and torch.equal(z, gradient)
    wide, narrow = TOLERANCE[loss.dtype], TOLERANCE[z.dtype]
    return close(found, loss.double(), wide) and close(z, gradient.double(), narrow)


def check(emulator, way, kind, dtype, reduction="mean", per_sample=False, forward_only=False):
    emulator.set_device(*WAYS[way][0])
    try:
        return run(way, kind, dtype, reduction, per_sample, forward_only)
    finally:
        emulator.set_device(*H100)


def run_all(emulator, dtype):
    """True if every check passes."""
    return all(
        check(emulator, way, kind, dtype, reduction, per_sample)
        for way in WAYS
        for kind, reduction, per_sample in (
            ("smooth", "mean", True),
            ("labels", "none", False),
            ("probabilities", "sum", True),
        )
    )


def run_few(emulator, dtype):
    """Fewer checks, for ThreadSanitizer, which is slow: every kernel and barrier once."""
    return all(
        check(emulator, way, kind, dtype, per_sample=True, forward_only=True)
        for way, kind in (
            ("tile", "smooth"),
            ("tile_pixels", "capped"),
            ("map_of_lanes", "smooth"),
            ("warp_odd", "smooth"),
            ("block", "capped"),
            ("unaligned", "labels"),
            ("cluster", "smooth"),
            ("segments", "labels"),
            ("many_rows", "labels"),
        )
    )
