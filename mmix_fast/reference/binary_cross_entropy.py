"""The mixed binary cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arithmetic import as_lam, compute_dtype
from .terms import Lam, blend, followed, partner, per_row, term


def mixed_binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    perm: Tensor | None,
    lam: Lam,
    *,
    target_b: Tensor | None = None,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    target_threshold: float | None = None,
    inplace_backward: bool = False,
) -> Tensor:
    acc = compute_dtype(logits.dtype)
    q, bad = _smoothed(target, logits, label_smoothing)
    if perm is None:
        assert target_b is not None  # mmix_fast.functional raises otherwise
        q_b, bad_b = _smoothed(target_b, logits, label_smoothing)
    else:
        index, bad_perm = partner(perm)
        q_b = q.index_select(0, index)
        bad_b = bad.index_select(0, index) | per_row(bad_perm, bad, 0)
    coef = per_row(as_lam(lam, acc, logits.device), q, 0)
    t = blend(coef, q, q_b, followed(lam))
    if target_threshold is not None:  # NaN stays NaN
        t = torch.where(t > target_threshold, 1, torch.where(t.isnan(), t, 0))
    z = logits.to(acc)
    if weight is not None:
        weight = per_row(weight.to(acc), t, 1)
        # A class of weight 0 is absent; 0 times its inf or NaN would give NaN.
        z, t = (torch.where((weight == 0) & ~v.isfinite(), 0, v) for v in (z, t))
    t = t.masked_fill(bad | bad_b, float("nan"))
    positive = t if pos_weight is None else per_row(pos_weight.to(acc), t, 1) * t
    # softplus(z) is -logsigmoid(-z). F.softplus is linear from 20 on, too early for float64.
    loss = term(1 - t, -F.logsigmoid(-z)) + term(positive, -F.logsigmoid(z))
    if weight is not None:
        loss = weight * loss
    if reduction == "none":
        return loss
    if reduction == "batchmean":
        return loss.sum() / logits.shape[0]
    return loss.mean() if reduction == "mean" else loss.sum()


def _smoothed(target: Tensor, logits: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(the smoothed target in the logits' shape, True for rows whose label is out of range)."""
    acc, classes = compute_dtype(logits.dtype), logits.shape[1]
    if target.dtype != torch.int64:
        bad = torch.zeros_like(logits[:, :1], dtype=torch.bool)
        return (1 - eps) * target.to(acc) + eps / 2, bad
    target = target.unsqueeze(1)
    hot = torch.arange(classes, device=target.device).reshape(-1, *[1] * (target.ndim - 2))
    # Chosen, not computed: a float sum could differ in a bit, which target_threshold would show.
    base = torch.full((), eps / classes, dtype=acc, device=target.device)
    on = torch.full((), 1 - eps + eps / classes, dtype=acc, device=target.device)
    return torch.where(hot == target, on, base), (target < 0) | (target >= classes)
