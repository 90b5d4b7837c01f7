"""The paper's tests of a trained network beyond its test set: novel deformations, FGSM and PGD.

Attacks: section 5.3, Table 7, and appendix D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

from ..perturb import DEFORMATIONS, pgd, warp
from .data import Split

Model = Callable[[Tensor], Tensor]  # pixels in 0..1 to logits


@dataclass(frozen=True)
class Attack:
    epsilon: float  # in units of the pixel range 0..1
    step: float
    steps: int
    most: int | None = None  # images that are attacked, if not all


# The paper gives no epsilon. 0.03 and steps of 0.01 are those of its authors' scripts
# (https://github.com/vikasverma1077/manifold_mixup, supervised/interpolation_exp.py), 7 steps those
# of Madry et al., whom it cites. The last one is appendix D's check that gradients still lead to
# errors: on a part of the images, for it costs 200 times what FGSM costs.
ATTACKS = {
    "FGSM 0.03": Attack(0.03, 0.03, 1),
    "PGD 0.03, 7 steps": Attack(0.03, 0.01, 7),
    "PGD unbounded, 200 steps": Attack(inf, 0.01, 200, most=1000),
}


def accuracy(
    model: Model,
    split: Split,
    change: Callable[[Tensor, Tensor, slice], Tensor],
    device: torch.device,
    batch: int,
) -> float:
    """In percent, of the images after change(pixels, labels, their place in the split)."""
    right = 0
    for start in range(0, len(split.labels), batch):
        rows = slice(start, start + batch)
        pixels, y = split.images[rows].to(device).float() / 255, split.labels[rows].to(device)
        changed = change(pixels, y, rows)
        with torch.no_grad():
            right += int((model(changed).argmax(1) == y).sum())
    return 100 * right / len(split.labels)


def part_of(split: Split, most: int | None, seed: int) -> Split:
    """All images, or so many of them at random: some test sets are sorted by class."""
    count = len(split.labels)
    if most is None or most >= count:
        return split
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most]
    return Split(split.images[rows], split.labels[rows])


def evaluate(
    model: nn.Module,
    split: Split,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: torch.device,
    batch: int,
    seed: int,
) -> dict[str, float]:
    """Accuracy in percent on the images as they are ("clean"), deformed and attacked.

    `model` takes normalised images. It is in eval mode meanwhile, so a ManifoldMixup on it mixes
    nothing. Call it without autocast: a half-precision gradient underflows to 0, which has no sign.
    """
    center, scale = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))

    def logits(pixels: Tensor) -> Tensor:
        return model((pixels - center) / scale)

    def measured(change: Callable[[Tensor, Tensor, slice], Tensor], some: Split = split) -> float:
        return accuracy(logits, some, change, device, batch)

    was_training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            found = {"clean": measured(lambda x, y, rows: x)}
            for name, deformation in DEFORMATIONS.items():
                # Drawn for all images at once: the batch size must not change the result.
                all_of = deformation.matrices(len(split.labels), seed)
                found[name] = measured(lambda x, y, rows, m=all_of: warp(x, m[rows].to(device)))
            for name, a in ATTACKS.items():
                found[name] = measured(
                    lambda x, y, rows, a=a: pgd(logits, x, y, a.epsilon, a.step, a.steps),
                    part_of(split, a.most, seed),
                )
    finally:
        model.train(was_training)
    return found
