"""The checks of a linear head whose loss is taken in chunks."""

from __future__ import annotations

from typing import Any

import torch

from .. import validation as v
from ..scalars import check_index
from ..tracing import autocast_dtype

LINEAR_REDUCTIONS = ("mean", "sum")


def check_chunk_size(chunk_size: Any) -> int | None:
    if chunk_size is not None and (chunk_size := check_index("chunk_size", chunk_size)) < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    return chunk_size


def check_head(input: Any, linear_weight: Any, linear_bias: Any) -> torch.dtype:
    """Checks a linear head and its input. Returns the dtype of the logits."""
    v.check_x(input, "input")
    v.check_x(linear_weight, "linear_weight")
    if input.ndim != 2:
        raise ValueError(f"input must have shape (N, D), got {v.describe(input)}")
    features = input.shape[1]
    if linear_weight.ndim != 2 or linear_weight.shape[1] != features:
        raise ValueError(
            f"linear_weight must have shape (C, {features}), got {v.describe(linear_weight)}"
        )
    dtype = autocast_dtype(input)
    if linear_weight.dtype != input.dtype and dtype == input.dtype:
        raise TypeError(
            f"linear_weight must have input's dtype {input.dtype}, got {v.describe(linear_weight)}"
        )
    if linear_weight.device != input.device:
        raise ValueError(f"linear_weight must be on {input.device}, got {linear_weight.device}")
    if linear_bias is not None:
        v.check_tensor(linear_bias, "linear_bias")
        wanted = f"linear_bias must be {linear_weight.dtype} of shape ({linear_weight.shape[0]},)"
        if linear_bias.dtype != linear_weight.dtype:
            raise TypeError(f"{wanted}, got {v.describe(linear_bias)}")
        if linear_bias.shape != linear_weight.shape[:1]:
            raise ValueError(f"{wanted}, got {v.describe(linear_bias)}")
        if linear_bias.device != input.device:
            raise ValueError(f"linear_bias must be on {input.device}, got {linear_bias.device}")
    return dtype
