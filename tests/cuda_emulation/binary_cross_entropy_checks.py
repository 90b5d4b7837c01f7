"""Small binary cross-entropies that run every kernel, code path and barrier.

As in cross_entropy_checks.py: each check returns True if the result is right.
"""

import torch

from mmix_fast import reference
from tests.cuda_emulation.cross_entropy_checks import CALM, H100, OPS, close, dense, sliced
from tests.support.cases import TOLERANCE

KERNEL = "binary_cross_entropy_tiles"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Code path -> (device, whether pieces are neighbouring rows, function of a dtype: makes logits).
WAYS = {
    "rows": (CALM, False, dense(19, 1040)),
    "rows_apart": (CALM, False, lambda dtype: torch.randn(21, 200)[:, :160]),
    "rows_cut": (
        CALM,
        False,
        dense(19, 1040, odd=1),
    ),  # pieces go on into the next row; a last tail
    "short_rows": (CALM, False, lambda dtype: torch.randn(2101, 3)),  # several tiles for each block
    "long_rows": (CALM, False, lambda dtype: torch.randn(2, 9000)),
    "unaligned": (CALM, False, sliced(5, 900)),
    "map": (CALM, True, lambda dtype: torch.randn(3, 7, 16, 24)),
    "map_of_parts": (CALM, True, lambda dtype: torch.randn(1, 40, 8, 12)),
    "pixels": (CALM, True, lambda dtype: torch.randn(3, 9, 5, 7)),
    "far_classes": (CALM, True, lambda dtype: torch.randn(70, 300).t()),
}
KINDS = ("labels", "smooth", "cut", "weighted", "bytes", "cut bytes", *FLOATS)


def make(way, kind, dtype, per_sample):
    """((logits, target, perm, lam), keyword arguments of the loss)."""
    z = WAYS[way][2](dtype).mul_(3)  # keeps its strides
    z = torch.empty_strided(z.shape, z.stride(), dtype=dtype).copy_(z)
    batch, classes = z.shape[:2]
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    lam = torch.rand(batch if per_sample else ()).to(acc)
    if per_sample:
        lam[::3], lam[1::3] = 0, 1
    kw = {} if kind in ("labels", "bytes") else {"label_smoothing": 0.1}
    if kind in ("cut", "cut bytes"):
        kw["target_threshold"] = 0.02
    if kind in ("weighted", *FLOATS):
        kw["weight"], kw["pos_weight"] = torch.rand(classes), (3 * torch.rand(classes)).to(dtype)
        kw["weight"][::4] = 0
        if kind != "weighted":
            del kw["weight" if way == "rows" else "pos_weight"]
    if kind in FLOATS:
        y = torch.rand(z.shape).to(kind)
    elif "bytes" in kind:
        y = torch.randint(0, 2, z.shape, dtype=torch.uint8)
    else:
        y = torch.randint(0, classes, z.shape[:1] + z.shape[2:])
    if not z.is_contiguous() and y.shape == z.shape:  # of the logits' layout
        y = torch.empty_strided(z.shape, z.stride(), dtype=y.dtype).copy_(y)
    return (z, y, torch.randperm(batch), lam), kw


def arguments(target, perm, lam, target_b=None, weight=None, pos_weight=None, reduction="mean",
              label_smoothing=0.0, target_threshold=None):  # fmt: skip
    """The op's arguments after the logits."""
    return (target, perm, target_b, lam, weight, pos_weight, reduction, label_smoothing,
            target_threshold)  # fmt: skip


def truth(z, y, perm, lam, upstream, **kw):
    """The reference loss and its gradient, in float64."""
    leaf = z.double().requires_grad_()
    kw = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in kw.items()}
    y = y.double() if y.is_floating_point() else y
    loss = reference.mixed_binary_cross_entropy(leaf, y, perm, lam.double(), **kw)
    (grad,) = torch.autograd.grad(loss, leaf, upstream.double().expand(loss.shape))
    return loss.detach(), grad


def run(way, kind, dtype, reduction, per_sample, forward_only):
    """The forward, with and without its gradient, and the three backward ops."""
    (z, y, perm, lam), kw = make(way, kind, dtype, per_sample)
    kw["reduction"] = reduction
    args = arguments(y, perm, lam, **kw)
    before = z.clone()
    loss, gradient = OPS.binary_cross_entropy(z, *args, 1.0)
    want, want_gradient = truth(z, y, perm, lam, torch.ones(()), **kw)
    wide, narrow = TOLERANCE[loss.dtype], TOLERANCE[dtype]
    good = close(loss, want, wide) and close(gradient, want_gradient, narrow)
    if forward_only:
        return good
    alone = OPS.binary_cross_entropy(z, *args, None)
    good &= torch.equal(alone[0], loss) and alone[1].numel() == 0

    for upstream in (torch.ones_like(loss), torch.rand_like(loss)):
        _, want_gradient = truth(z, y, perm, lam, upstream, **kw)
        again = OPS.binary_cross_entropy_backward(upstream, z, *args)
        good &= close(again, want_gradient, narrow) and torch.equal(z, before)
        OPS.binary_cross_entropy_rescale_(gradient, upstream, z, *args)
        good &= torch.equal(gradient, again)
    OPS.binary_cross_entropy_backward_(upstream, z, *args)
    return good and torch.equal(z, again)


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
            ("weighted", "none", False),
            ("cut bytes", "batchmean", True),
        )
    )


def run_few(emulator, dtype):
    """Fewer checks, for ThreadSanitizer, which is slow: every kernel and barrier once."""
    return all(
        check(emulator, way, kind, dtype, per_sample=True, forward_only=True)
        for way, kind in (
            ("rows", "bytes"),
            ("short_rows", "smooth"),
            ("unaligned", "weighted"),
            ("map", "smooth"),
            ("pixels", "labels"),
        )
    )
