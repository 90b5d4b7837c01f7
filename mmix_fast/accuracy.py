"""The λ-weighted accuracy on mixed samples."""

from __future__ import annotations

import torch
from torch import Tensor

from . import validation as v
from .arithmetic import as_lam
from .tracing import readable
from .validation_targets import check_loss_targets

IGNORED = -100  # mixed_cross_entropy's default ignore_index; never counts as correct


def mixed_accuracy(
    logits: Tensor,
    target: Tensor,
    perm: Tensor | None,
    lam: float | Tensor,
    topk: int,
    target_b: Tensor | None = None,
) -> Tensor:
    """Implements :meth:`mmix_fast.Mix.accuracy`; see there. ``target_b`` as in the loss."""
    v.check_logits(logits)
    target, target_b = check_loss_targets(logits, target, perm, target_b, IGNORED)
    if perm is not None:
        v.check_perm(perm, logits.shape[0], logits.device)
    lam = v.check_lam(lam, logits.shape[0], logits.device)
    classes = logits.shape[1]
    topk = v.check_index("topk", topk)
    if not 1 <= topk <= classes:
        raise ValueError(f"topk must be in [1, {classes}], got {topk}")
    labels = not target.is_floating_point()
    if labels and v.must_check_values(logits.device) and readable(target, target_b):
        for name, y in (("target", target), ("target_b", target_b)):
            if y is not None:
                v.check_label_values(name, y, classes, IGNORED)
    if not labels:
        target, target_b = target.argmax(1), None if target_b is None else target_b.argmax(1)
    partner = target_b if perm is None else target.index_select(0, perm)
    assert partner is not None  # checked above
    if topk == 1:
        best = logits.argmax(1)
        own, other = best == target, best == partner
    else:
        best = logits.topk(topk, dim=1).indices
        own, other = ((best == labels.unsqueeze(1)).any(1) for labels in (target, partner))
    lam = as_lam(lam, torch.float32, logits.device)
    if lam.ndim:
        lam = lam.reshape(-1, *[1] * (own.ndim - 1))
    return (lam * own + (1 - lam) * other).mean()
