"""What do the other paths of the loss cost: as users of timm, of distillation, of segmentation, of
large models or of gradient accumulation write them? Forward and backward, with a fresh gradient.

The shapes are those that such users have on a CPU; ``cross_entropy`` has more of them, and what
cold caches do.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mmix_fast import mixed_cross_entropy
from mmix_fast.integrations.timm import SoftTargetCrossEntropy

from .formulas import Loss, draw, gradient, near, soft_loss, truth, two_terms
from .problem import OURS, Goal, Maker, Problem, Rival, by_threads, compiled

SMOOTHING = 0.1  # timm's default
CAP = 30.0  # Gemma 2's, of its last logits
Z_LOSS = 1e-4  # PaLM's
SHARE = 0.25  # of a step of four accumulated batches


def contest(
    op: str,
    z: Tensor,
    given: tuple[Tensor, ...],
    ours: Loss,
    theirs: dict[str, tuple[Loss, float]],
    compiling: bool = True,
) -> Problem:
    """``theirs``: name -> (loss, least ratio). The first is the truth, computed in float64, and the
    one that is compiled. All take ``given`` after the logits."""
    formula = next(iter(theirs.values()))[0]
    wide = [t.double() if t.is_floating_point() else t for t in given]
    want = truth(formula, z, torch.float64, *wide)

    def rival(loss: Loss, compiled: bool = False) -> Rival:
        return Rival(gradient(loss, *given), want, *near(z), compiled=compiled)

    rivals = {OURS: rival(ours)} | {name: rival(loss) for name, (loss, _) in theirs.items()}
    if compiling:
        rivals["compiled"] = rival(compiled(formula), compiled=True)
    goals = tuple(Goal(name, 1 / ratio) for name, (_, ratio) in theirs.items())

    def fresh() -> Tensor:
        return z.clone().requires_grad_()

    return Problem(op, tuple(z.shape), z.dtype, fresh, rivals, goals=goals, cold=False)


def against_two_terms(
    op: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    least: float,
    memory_format: torch.memory_format = torch.contiguous_format,
    compiling: bool = True,
) -> Problem:
    z, *labels = draw(shape, dtype, device)
    z = z.to(memory_format=memory_format)
    theirs = {"two terms": (two_terms, least)}
    return contest(op, z, tuple(labels), mixed_cross_entropy, theirs, compiling)


def timm_formula(z: Tensor, t: Tensor) -> Tensor:
    return (-t * F.log_softmax(z, -1)).sum(-1).mean()


def timm_targets(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Problem:
    z, t = torch.randn(2, *shape, device=device).to(dtype)
    theirs = {"timm's formula": (timm_formula, 3.0), "soft targets": (F.cross_entropy, 2.5)}
    return contest("timm's loss", z, (t.softmax(1),), SoftTargetCrossEntropy(), theirs)


def probabilities(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Problem:
    """As a teacher gives them."""
    z, _, perm, lam = draw(shape, dtype, device)
    t = torch.randn_like(z).softmax(1)
    theirs = {"soft targets": (soft_loss, 3.0)}
    return contest("probability targets", z, (t, perm, lam), mixed_cross_entropy, theirs)


def weighted(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Problem:
    z, *labels = draw(shape, dtype, device)
    weight = 0.5 + torch.rand(shape[1], device=device).to(dtype)  # no class counts for nothing

    def of(loss: Loss) -> Loss:
        return lambda *given: loss(*given[:-1], weight=given[-1], label_smoothing=SMOOTHING)

    theirs = {"two terms": (of(two_terms), 3.0)}
    name = "weight, label smoothing"
    return contest(name, z, (*labels, weight), of(mixed_cross_entropy), theirs)


def capped(z: Tensor, *labels: Tensor) -> Tensor:
    return two_terms(CAP * torch.tanh(z / CAP), *labels)


def softcap(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Problem:
    z, *labels = draw(shape, dtype, device)
    ours = partial(mixed_cross_entropy, softcap=CAP)
    return contest("softcap", z, tuple(labels), ours, {"two terms": (capped, 3.0)})


def penalised(z: Tensor, *labels: Tensor) -> Tensor:
    return two_terms(z, *labels) + Z_LOSS * z.logsumexp(1).square().mean()


def z_loss(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Problem:
    z, *labels = draw(shape, dtype, device)
    ours = partial(mixed_cross_entropy, z_loss=Z_LOSS)
    theirs = {"two terms": (penalised, 3.0)}
    return contest("z-loss", z, tuple(labels), ours, theirs, compiling=False)


def accumulated(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Problem:
    """The upstream gradient is not 1."""
    z, *labels = draw(shape, dtype, device)

    def of(loss: Loss) -> Loss:
        return lambda *given: SHARE * loss(*given)

    theirs = {"two terms": (of(two_terms), 4.0)}
    name = f"upstream {SHARE}"
    return contest(name, z, tuple(labels), of(mixed_cross_entropy), theirs, compiling=False)


def per_sample(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Problem:
    """A λ for each sample, a loss for each row."""
    z, y, perm, _ = draw(shape, dtype, device)
    lam = torch.rand(shape[0], device=device)

    def of(loss: Loss) -> Loss:
        return lambda *given: loss(*given, reduction="none").mean()

    theirs = {"two terms": (of(two_terms), 3.0)}
    name = "per-sample λ, rows"
    return contest(name, z, (y, perm, lam), of(mixed_cross_entropy), theirs, compiling=False)


segmentation = partial(against_two_terms, "segmentation", least=5.0)
segmentation_last = partial(
    against_two_terms,
    "segmentation channels_last",
    least=5.0,
    memory_format=torch.channels_last,
)
double = partial(against_two_terms, "cross-entropy", least=2.0, compiling=False)

IMAGENET, IMAGES = ((512, 1000),), ((4, 21, 128, 128),)  # 21: the classes of Pascal VOC
FLOAT = (torch.float32,)
# (what is measured, its shapes, of which --quick takes the first, its dtypes)
CASES = (
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


def makers(device: str, quick: bool) -> list[Maker]:
    found: list[Maker] = [
        partial(kind, shape, dtype, device)
        for kind, shapes, dtypes in CASES
        for shape in (shapes[:1] if quick else shapes)
        for dtype in dtypes
    ]
    return by_threads(found, device)
