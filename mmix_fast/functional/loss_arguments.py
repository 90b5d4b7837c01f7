"""The checks that all mixed cross-entropies have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import validation as v
from ..scalars import check_fraction, check_index, check_positive, check_real
from .mixed_target import MixedTarget

# target, perm, lam, target_b, ignore_index, label_smoothing, z_loss, softcap
Checked = tuple[
    Any, Tensor | None, float | Tensor, Any, int, float, float, float | None
]  # a plain tuple: each microsecond shows in small calls


def check_loss_arguments(
    logits: Tensor,
    target: Any,
    perm: Any,
    lam: Any,
    target_b: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    softcap: Any,
) -> Checked:
    """Returns the arguments checked, except target and target_b, with a MixedTarget taken apart."""
    if isinstance(target, MixedTarget):
        target.check_alone(logits, perm, lam, target_b, label_smoothing)
        target, perm, lam, target_b, label_smoothing = target.for_cross_entropy()
    if perm is not None:
        v.check_perm(perm, logits.shape[0], logits.device)
    lam = v.check_lam(lam, logits.shape[0], logits.device)
    ignore_index = check_index("ignore_index", ignore_index)
    label_smoothing = check_fraction("label_smoothing", label_smoothing)
    z_loss = check_real("z_loss", z_loss)
    softcap = None if softcap is None else check_positive("softcap", softcap, "a float or None")
    return target, perm, lam, target_b, ignore_index, label_smoothing, z_loss, softcap
