"""Soft targets."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arithmetic import as_lam, compute_dtype
from .mixing import mix_
from .terms import Lam, blend, followed, partner, per_row


def _soft(
    target: Tensor, classes: int, eps: float, ignore_index: int, dtype: torch.dtype
) -> Tensor:
    """q(y) of shape (B, C, ...): zero where ignored, NaN where the label is out of range."""
    valid = target != ignore_index
    bad = valid & ((target < 0) | (target >= classes))
    hot = torch.arange(classes, device=target.device).reshape(-1, *[1] * (target.ndim - 1))
    onehot = (hot == target.unsqueeze(1)).to(dtype)
    q = ((1 - eps) * onehot + eps / classes) * valid.unsqueeze(1)
    return q.masked_fill(bad.unsqueeze(1), float("nan"))


def mix_targets(
    target: Tensor,
    perm: Tensor | None,
    lam: Lam,
    *,
    target_b: Tensor | None = None,
    num_classes: int | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    acc = compute_dtype(target.dtype, dtype)

    def smoothed(y: Tensor) -> Tensor:
        if y.is_floating_point():
            return (1 - label_smoothing) * y.to(acc) + label_smoothing / y.shape[1]
        assert num_classes is not None  # mmix_fast.functional raises otherwise
        return _soft(y, num_classes, label_smoothing, ignore_index, acc)

    q = smoothed(target)
    coef = per_row(as_lam(lam, acc, target.device), q, 0)
    if perm is None:
        assert target_b is not None  # mmix_fast.functional raises otherwise
        return blend(coef, q, smoothed(target_b), followed(lam)).to(dtype)
    index, bad = partner(perm)
    out = blend(coef, q, q.index_select(0, index), followed(lam))
    return out.masked_fill(per_row(bad, q, 0), float("nan")).to(dtype)


def mix_batch_(
    x: Tensor,
    target: Tensor,
    perm: Tensor,
    lam: Lam,
    *,
    num_classes: int | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    soft = mix_targets(
        target,
        perm,
        lam,
        num_classes=num_classes,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        dtype=dtype,
    )
    return mix_(x, perm, lam), soft
