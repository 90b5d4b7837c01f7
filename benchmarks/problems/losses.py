"""Other uses of the loss: timm, distillation, segmentation, large models, accumulation.

Forward and backward with a fresh gradient, at shapes that are usual on a CPU. `cross_entropy` has
more shapes and cold caches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mmix_fast import mixed_cross_entropy
from mmix_fast.integrations.timm import SoftTargetCrossEntropy

from ..problem import OURS, Goal, Implementation, Maker, Problem, by_threads, compiled
from .common import (
    Loss,
    expected_gradient,
    gradient,
    make_inputs,
    soft_loss,
    tolerances,
    two_terms,
)

SMOOTHING = 0.1  # timm's default
CAP = 30.0  # Gemma 2's, for its final logits
Z_LOSS = 1e-4  # PaLM's
SHARE = 0.25  # the weight of one of four accumulated batches


def loss_problem(
    op: str,
    z: Tensor,
    args: tuple[Tensor, ...],
    ours: Loss,
    baselines: dict[str, tuple[Loss, float]],
    compiling: bool = True,
    moved: int = 0,
    binary: bool = False,
) -> Problem:
    """``baselines``: name -> (loss, least speedup aimed at). The first, computed in float64, gives
    the expected gradient; it is also the one that is compiled. Every loss takes ``args`` after the
    logits. ``binary``: the mean is over elements."""
    formula = next(iter(baselines.values()))[0]
    wide = [t.double() if t.is_floating_point() else t for t in args]
    expected = expected_gradient(formula, z, torch.float64, *wide)

    def implementation(loss: Loss, compiled: bool = False) -> Implementation:
        return Implementation(
            gradient(loss, *args), expected, *tolerances(z, binary), compiled=compiled
        )

    implementations = {OURS: implementation(ours)} | {
        name: implementation(loss) for name, (loss, _) in baselines.items()
    }
    if compiling:
        implementations["compiled"] = implementation(compiled(formula), compiled=True)
    goals = tuple(Goal(name, 1 / ratio) for name, (_, ratio) in baselines.items())

    def fresh() -> Tensor:
        return z.clone().requires_grad_()

    return Problem(
        op, tuple(z.shape), z.dtype, fresh, implementations, moved, goals=goals, cold=False
    )


def two_terms_problem(
    op: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    goal: float,
    memory_format: torch.memory_format = torch.contiguous_format,
    compiling: bool = True,
) -> Problem:
    z, *labels = make_inputs(shape, dtype, device)
    z = z.to(memory_format=memory_format)
    baselines = {"two terms": (two_terms, goal)}
    return loss_problem(op, z, tuple(labels), mixed_cross_entropy, baselines, compiling)


def timm_formula(z: Tensor, t: Tensor) -> Tensor:
    return (-t * F.log_softmax(z, -1)).sum(-1).mean()


def timm_targets(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Problem:
    z, t = torch.randn(2, *shape, device=device).to(dtype)
    baselines = {"timm's formula": (timm_formula, 3.0), "soft targets": (F.cross_entropy, 2.5)}
    return loss_problem("timm's loss", z, (t.softmax(1),), SoftTargetCrossEntropy(), baselines)


def probabilities(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, compiling: bool = True
) -> Problem:
    """Targets as a teacher network gives them."""
    z, _, perm, lam = make_inputs(shape, dtype, device)
    t = torch.randn_like(z).softmax(1)
    baselines = {"soft targets": (soft_loss, 3.0)}
    args = (t, perm, lam)
    return loss_problem("probability targets", z, args, mixed_cross_entropy, baselines, compiling)


def weighted(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Problem:
    z, *labels = make_inputs(shape, dtype, device)
    weight = 0.5 + torch.rand(shape[1], device=device).to(dtype)  # no weight is near 0

    def of(loss: Loss) -> Loss:
        return lambda *args: loss(*args[:-1], weight=args[-1], label_smoothing=SMOOTHING)

    baselines = {"two terms": (of(two_terms), 3.0)}
    name = "weight, label smoothing"
    return loss_problem(name, z, (*labels, weight), of(mixed_cross_entropy), baselines)


def capped(z: Tensor, *labels: Tensor) -> Tensor:
    return two_terms(CAP * torch.tanh(z / CAP), *labels)


def softcap(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Problem:
    z, *labels = make_inputs(shape, dtype, device)
    ours = partial(mixed_cross_entropy, softcap=CAP)
    return loss_problem("softcap", z, tuple(labels), ours, {"two terms": (capped, 3.0)})


def penalised(z: Tensor, *labels: Tensor) -> Tensor:
    return two_terms(z, *labels) + Z_LOSS * z.logsumexp(1).square().mean()


def z_loss(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Problem:
    z, *labels = make_inputs(shape, dtype, device)
    ours = partial(mixed_cross_entropy, z_loss=Z_LOSS)
    baselines = {"two terms": (penalised, 3.0)}
    return loss_problem("z-loss", z, tuple(labels), ours, baselines, compiling=False)


def accumulated(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Problem:
    """Gradient accumulation: the upstream gradient is not 1."""
    z, *labels = make_inputs(shape, dtype, device)

    def of(loss: Loss) -> Loss:
        return lambda *args: SHARE * loss(*args)

    baselines = {"two terms": (of(two_terms), 4.0)}
    name = f"upstream {SHARE}"
    return loss_problem(name, z, tuple(labels), of(mixed_cross_entropy), baselines, compiling=False)


def per_sample(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Problem:
    """Per-sample λ, and a loss for each row."""
    z, y, perm, _ = make_inputs(shape, dtype, device)
    lam = torch.rand(shape[0], device=device)

    def of(loss: Loss) -> Loss:
        return lambda *args: loss(*args, reduction="none").mean()

    baselines = {"two terms": (of(two_terms), 3.0)}
    name = "per-sample λ, rows"
    return loss_problem(
        name, z, (y, perm, lam), of(mixed_cross_entropy), baselines, compiling=False
    )


segmentation = partial(two_terms_problem, "segmentation", goal=5.0)
segmentation_last = partial(
    two_terms_problem,
    "segmentation channels_last",
    goal=5.0,
    memory_format=torch.channels_last,
)
double = partial(two_terms_problem, "cross-entropy", goal=2.0, compiling=False)

IMAGENET, IMAGES = ((512, 1000),), ((4, 21, 128, 128),)  # 21 classes: Pascal VOC
FLOAT = (torch.float32,)
# (what makes the problem, its shapes, its dtypes); --quick takes the first shape
Cases = tuple[
    tuple[Callable[..., Problem], tuple[tuple[int, ...], ...], tuple[torch.dtype, ...]], ...
]
CASES: Cases = (
    (timm_targets, ((128, 1000), (1024, 1000), (256, 21841)), FLOAT),
    (probabilities, ((128, 1000), (512, 1000)), FLOAT),
    (weighted, IMAGENET, FLOAT),
    (softcap, IMAGENET, FLOAT),
    (z_loss, IMAGENET, FLOAT),
    (segmentation, IMAGES, (torch.float32, torch.bfloat16)),
    (segmentation_last, IMAGES, FLOAT),
    (double, IMAGENET, (torch.float64,)),
    (accumulated, IMAGENET, FLOAT),
    (per_sample, IMAGENET, FLOAT),
)


def makers(device: str, quick: bool, cases: Cases = CASES) -> list[Maker]:
    found: list[Maker] = [
        partial(kind, shape, dtype, device)
        for kind, shapes, dtypes in cases
        for shape in (shapes[:1] if quick else shapes)
        for dtype in dtypes
    ]
    return by_threads(found, device)
