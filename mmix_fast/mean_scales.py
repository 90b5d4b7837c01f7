"""The factors of a mean over a whole batch, for ops that see only a part of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mean_scales(
    target: Tensor,
    target_b: Tensor,
    lam: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    classes: int,
) -> Tensor:
    """What schemas.py calls scales: float64 ``(4,)`` on the target's device; no value is read.

    ``target``, ``target_b``: labels ``(B, d1, ...)``, or floating ``(B, C, d1, ...)``. Labels out
    of range do not count. lam: ``()`` or ``(B,)``.
    """
    if target.is_floating_point():
        rows = math.prod(target.shape[:1] + target.shape[2:])
        scales = target.new_full((4,), 1 / rows if rows else 1.0, dtype=torch.float64)
        scales[3].fill_(0.0 if rows else float("nan"))
        return scales
    own, other = (_weights(y, weight, ignore_index, classes) for y in (target, target_b))
    lam, rest = _coefficients(lam, target)
    if lam.ndim:
        joint = (_term(lam, own[0]) + _term(rest, other[0])).sum()
        sums = joint, joint
        undefined = joint == 0
    else:
        sums = own[0].sum(), other[0].sum()
        undefined = ((sums[0] == 0) & (lam != 0)) | ((sums[1] == 0) & (rest != 0))
    count = (_term(lam, own[1]) + _term(rest, other[1])).sum()
    nan = float("nan")
    return torch.stack(
        [
            torch.where(sums[0] == 0, nan, 1 / sums[0]),
            torch.where(sums[1] == 0, nan, 1 / sums[1]),
            torch.where(count == 0, 0.0, 1 / count),
            torch.where(undefined, nan, 0.0),
        ]
    )


def counted(target: Tensor, target_b: Tensor, lam: Tensor, ignore_index: int) -> Tensor:
    """The sum of each row's coefficients whose labels count, float64; ``(B, d1, ...)``."""
    own, rest = _coefficients(lam, target)
    return _term(own, (target != ignore_index).double()) + _term(
        rest, (target_b != ignore_index).double()
    )


def _coefficients(lam: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """λ and 1-λ, rounded in λ's dtype, as float64 that broadcasts with the labels."""
    own, rest = lam.double(), (1 - lam).double()
    if lam.ndim == 0 or lam.ndim == labels.ndim:
        return own, rest
    shape = -1, *[1] * (labels.ndim - 1)
    return own.reshape(shape), rest.reshape(shape)


def _weights(
    labels: Tensor, weight: Tensor | None, ignore_index: int, classes: int
) -> tuple[Tensor, Tensor]:
    """(the class weight of each label that counts, 1 for each label that counts); float64."""
    counts = (labels >= 0) & (labels < classes) & (labels != ignore_index)
    ones = counts.double()
    if weight is None:
        return ones, ones
    return weight.double()[labels.clamp(0, classes - 1)] * ones, ones


def _term(coefficient: Tensor, value: Tensor) -> Tensor:
    return torch.where(coefficient == 0, 0.0, coefficient * value)
