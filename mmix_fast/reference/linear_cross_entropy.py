"""The mixed cross-entropy of a linear head's logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tracing import autocast_dtype, without_autocast
from .cross_entropy import mixed_cross_entropy
from .terms import Lam


def mixed_linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    perm: Tensor | None,
    lam: Lam,
    *,
    linear_bias: Tensor | None = None,
    target_b: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    return linear_cross_entropy_in(
        autocast_dtype(input),
        input,
        linear_weight,
        target,
        perm,
        lam,
        linear_bias=linear_bias,
        target_b=target_b,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
    )


def linear_cross_entropy_in(
    dtype: torch.dtype,
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    perm: Tensor | None,
    lam: Lam,
    *,
    linear_bias: Tensor | None,
    **options: Any,
) -> Tensor:
    """With logits of this dtype, all at once. ``options``: of mixed_cross_entropy."""
    bias = None if linear_bias is None else linear_bias.to(dtype)
    with without_autocast(input.device):
        logits = F.linear(input.to(dtype), linear_weight.to(dtype), bias)
        return mixed_cross_entropy(logits, target, perm, lam, **options)
