"""What is measured on a GPU: shapes and dtypes of training, beside the usual computations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import mmix_fast

from ..problem import OURS, Implementation, Problem, compiled
from ..problems import binary_cross_entropy, cross_entropy, cutmix, losses, mix
from ..problems.common import MIX_TOLERANCES, Loss, eager_mix, make_inputs, two_terms

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
Shape = tuple[int, ...]
# The least share of a copy's bandwidth, for a row that moves at least LARGE bytes.
MIX_SHARE, LOSS_SHARE, LARGE = 0.80, 0.85, 64e6
PLAIN_PASS = "mul_"  # reads and writes x, and no partner
# Kept of the problems' baselines; the others are measured on the CPU.
MIX_BASELINES = ("eager", "timm in place", "compiled", PLAIN_PASS)
LOSS_BASELINES = ("two terms", "soft targets", "compiled", "Liger-Kernel", "quack")
LOSS_TOLERANCES = (1e-2, 0.0)  # of a loss, which two terms round to bfloat16
TINY = (8, 12, 6, 6)  # no dimension is larger in a dry run


@dataclass(frozen=True)
class Case:
    """A problem to make, and the share of a copy's bandwidth that it should reach (0: none)."""

    make: partial[Problem]  # takes the device
    share: float

    @property
    def title(self) -> str:
        """Names the problem where it could not be made."""
        flags = [key for key, value in self.make.keywords.items() if value is True]
        said = [a for a in self.make.args if isinstance(a, (str, int, tuple, torch.dtype))]
        return " ".join(map(str, [self.make.func.__name__, *said, *flags]))


def plain(function: Callable) -> Callable:
    """In place of a compiler, which takes seconds for each shape."""
    return function


def kept(problem: Problem, op: str, moved: int, baselines: tuple[str, ...]) -> Problem:
    chosen = {n: i for n, i in problem.implementations.items() if n == OURS or n in baselines}
    return replace(problem, op=op, implementations=chosen, moved=moved, goals=())


def mixing(
    op: str,
    shape: Shape,
    dtype: torch.dtype,
    device: str,
    channels_last: bool = False,
    compiling: bool = False,
) -> Problem:
    ours = getattr(mmix_fast, op)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    problem = mix.forward(shape, dtype, device, compiled if compiling else plain, ours, layout)
    baselines = set(MIX_BASELINES) - (set() if compiling else {"compiled"})
    name = op + " NHWC" if channels_last else op
    return kept(problem, name, problem.moved, tuple(baselines))


def mixing_a_batch(shape: Shape, classes: int, dtype: torch.dtype, device: str) -> Problem:
    x, perm, lam = mix.make_inputs(shape, dtype, device)
    y = torch.randint(0, classes, shape[:1], device=device)
    hot = F.one_hot(y, classes).float()
    expected = (eager_mix(x.float(), perm, lam).to(dtype), eager_mix(hot, perm, lam))

    def ours(x: Tensor) -> tuple[Tensor, Tensor]:
        return mmix_fast.mix_batch_(x, y, perm, lam, num_classes=classes)

    def eager(x: Tensor) -> tuple[Tensor, Tensor]:
        return eager_mix(x, perm, lam), eager_mix(F.one_hot(y, classes).float(), perm, lam)

    implementations = {
        OURS: Implementation(ours, expected, *MIX_TOLERANCES),
        "eager": Implementation(eager, expected, *MIX_TOLERANCES),
    }
    moved = 2 * x.nbytes + y.nbytes + hot.nbytes
    return Problem("mix_batch_", shape, dtype, x.clone, implementations, moved)


def pasting(shape: Shape, device: str) -> Problem:
    problem = cutmix.paste(shape, device)
    box = (shape[-2] - 2 * (shape[-2] // 4)) * (shape[-1] - 2 * (shape[-1] // 4))  # cutmix.paste's
    moved = 2 * problem.dtype.itemsize * shape[0] * shape[1] * box
    return kept(problem, "cutmix_", moved, (cutmix.ORIGINAL,))


def loss(
    shape: Shape, dtype: torch.dtype, device: str, inplace: bool = False, compiling: bool = False
) -> Problem:
    """In place, the logits must stay until the backward, which reads them again: three passes."""
    problem = cross_entropy.loss(shape, dtype, device, inplace, compiled if compiling else plain)
    moved = problem.moved * 3 // 2 if inplace else problem.moved
    baselines = set(LOSS_BASELINES) - {"soft targets"} - (set() if compiling else {"compiled"})
    return kept(problem, "loss in place" if inplace else "loss", moved, tuple(baselines))


def forward(shape: Shape, dtype: torch.dtype, device: str) -> Problem:
    """Of training: what "loss" takes longer is its backward, for an upstream gradient of 1."""
    z, *labels = make_inputs(shape, dtype, device)
    expected = two_terms(z.float(), *labels)

    def implementation(loss: Loss) -> Implementation:
        return Implementation(lambda z: loss(z, *labels), expected, *LOSS_TOLERANCES)

    losses = {OURS: mmix_fast.mixed_cross_entropy, "two terms": two_terms}
    implementations = {name: implementation(of) for name, of in losses.items()}

    def fresh() -> Tensor:
        return z.clone().requires_grad_()

    return Problem("loss, forward", shape, dtype, fresh, implementations, z.nbytes)


def other_loss(
    op: str,
    kind: Callable[..., Problem],
    passes: int,
    shape: Shape,
    dtype: torch.dtype,
    device: str,
) -> Problem:
    """Of problems/losses.py; ``passes``: how often the size of the logits must be moved."""
    problem = kind(shape, dtype, device)
    z = problem.fresh()
    return kept(problem, op, passes * z.nbytes, LOSS_BASELINES[:2])


def binary_loss(
    op: str, kind: Callable[..., Problem], shape: Shape, dtype: torch.dtype, device: str
) -> Problem:
    problem = kind(shape, dtype, device, compiling=False)
    return kept(problem, op, problem.moved, ("dense targets",))


soft_targets = partial(losses.probabilities, compiling=False)
segmentation = partial(losses.two_terms_problem, "segmentation", goal=1.0, compiling=False)
MIXED = (
    ((64, 8192), F32),
    ((64, 8192), F16),
    ((8192, 512), BF16),
    ((16384, 768), BF16),
    ((4096, 1023), F32),  # its rows are not aligned to 16 bytes
    ((256, 256, 56, 56), BF16),
    ((256, 256, 56, 56), F32),
)
LOSSES = (
    ((64, 1000), F32),
    ((256, 100), F32),
    ((2048, 100), F32),
    ((256, 1000), F32),
    ((256, 1000), BF16),
    ((80, 10000), F32),
    ((40, 21841), F32),
    ((1024, 21841), F32),
    ((8192, 1000), F32),
    ((8192, 32000), BF16),
)
COMPILED = (((64, 8192), F32), ((16384, 768), BF16), ((64, 1000), F32), ((8192, 32000), BF16))
UPSTREAM = (((256, 1000), F32), ((8192, 1000), F32), ((8192, 32000), BF16))
SOFT = (((256, 1000), F32), ((8192, 1000), F32), ((1024, 21841), F32))
BINARY = (((256, 1000), F32), ((8192, 1000), F32), ((8192, 1000), BF16), ((1024, 21841), F32))


def tiny(shape: Shape) -> Shape:
    return tuple(min(pair) for pair in zip(shape, TINY, strict=False))


def cases(dry: bool, compiler: bool) -> Iterator[Case]:
    """All cases; in a dry run small, and those of equal shapes once."""
    every = all_cases(dry, compiler)
    yield from {case.title: case for case in every}.values() if dry else every


def all_cases(dry: bool, compiler: bool) -> Iterator[Case]:
    small = tiny if dry else tuple

    def compiling(size: tuple[Shape, torch.dtype]) -> bool:
        return compiler and size in COMPILED

    for size in MIXED:
        for op in ("mix_", "mix"):
            make = partial(mixing, op, small(size[0]), size[1], compiling=compiling(size))
            yield Case(make, MIX_SHARE)
    for op in ("mix_", "mix"):
        last = small((64, 256, 56, 56))
        yield Case(partial(mixing, op, last, BF16, channels_last=True), MIX_SHARE)
    for shape, dtype in (((64, 8192), F32), ((128, 3, 224, 224), F32)):
        yield Case(partial(mixing_a_batch, small(shape), 10 if dry else 1000, dtype), MIX_SHARE)
    yield Case(partial(pasting, small((128, 3, 224, 224))), MIX_SHARE)
    for size in LOSSES:
        make = partial(loss, small(size[0]), size[1], compiling=compiling(size))
        yield Case(make, LOSS_SHARE)
    yield Case(partial(loss, small((8192, 32000)), BF16, inplace=True), LOSS_SHARE)
    binary = (
        ("BCE, labels", binary_cross_entropy.labels),
        ("BCE, multi-hot", binary_cross_entropy.multi_hot),
    )
    for op, kind in binary:
        for shape, dtype in BINARY:
            yield Case(partial(binary_loss, op, kind, small(shape), dtype), LOSS_SHARE)
    for shape, dtype in UPSTREAM:
        yield Case(partial(forward, small(shape), dtype), 0.0)
    # The forward has computed the gradient for an upstream of 1: here it is scaled, so no share.
    others = [("loss, upstream", losses.accumulated, 2, size, 0.0) for size in UPSTREAM]
    others += [("soft targets", soft_targets, 3, size, LOSS_SHARE) for size in SOFT]
    others += [("segmentation", segmentation, 2, ((8, 21, 512, 512), F32), LOSS_SHARE)]
    for op, kind, passes, (shape, dtype), share in others:
        yield Case(partial(other_loss, op, kind, passes, small(shape), dtype), share)
