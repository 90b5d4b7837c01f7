"""The mixed cross-entropy of a linear head, without all of its logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import validation as v
from .. import validation_targets as vt
from ..dispatch import select
from ..scalars import check_fraction, check_index, check_positive, check_real
from ..tracing import autocast_dtype, beyond_kernels, readable
from .mixed_target import MixedTarget
from .values import check_target_values


def mixed_linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | MixedTarget,
    perm: Tensor | None = None,
    lam: float | Tensor | None = None,
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
    """Cross-entropy of a linear head's logits against mixed labels, some rows at a time.

    Never holds more than ``chunk_size`` rows of logits, and of their gradient none beside them. The
    gradients of input, weight and bias are computed in the forward, each only if it is needed, and
    multiplied by the upstream gradient in the backward. Those of weight and bias are summed over
    the chunks in float32. For heads with many classes: there the logits and their gradient are the
    largest tensors of a training step.

    Args:
        input: features ``(N, D)``, floating.
        linear_weight: ``(C, D)``, as in ``nn.Linear``; input's dtype, or any under autocast.
        target, perm, lam: as in :func:`mixed_cross_entropy`, for N samples.
        linear_bias: ``(C,)``, of linear_weight's dtype.
        target_b, weight, ignore_index, label_smoothing, z_loss, softcap: as in
            :func:`mixed_cross_entropy`.
        reduction: "mean" | "sum".
        chunk_size: rows of logits at a time. None: about the memory of ``input``, in multiples of
            128, at least 256 on a CPU, and on a GPU what gives each multiprocessor a tile.

    Returns:
        The loss, 0-dim; float32 for half-precision logits.

    Raises:
        TypeError, ValueError, IndexError: as in :func:`mixed_cross_entropy`.

    All logits are held at once where only plain PyTorch serves: for a gradient of lam, weight or
    float targets, under torch.func, and in a double backward.

    Equivalent PyTorch: ``mixed_cross_entropy(F.linear(input, linear_weight, linear_bias), ...)``
    Source: chunks as in Liger Kernel's fused linear cross-entropy (Hsu et al., 2024).

    >>> features = backbone(x)  # (N, D)
    >>> loss = mixed_linear_cross_entropy(features, head.weight, y, perm, 0.3)
    """
    dtype = check_head(input, linear_weight, linear_bias)
    # Has the logits' shape, dtype and device, but no memory.
    logits = input.detach().new_empty((), dtype=dtype).expand(len(input), len(linear_weight))
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
    vt.check_reduction(reduction, ("mean", "sum"))
    if chunk_size is not None and (chunk_size := check_index("chunk_size", chunk_size)) < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    target, target_b = vt.check_loss_targets(logits, target, perm, target_b, ignore_index)
    if weight is not None:
        vt.check_weight("weight", weight, logits)
    others = beyond_kernels(target=target, target_b=target_b, lam=lam, weight=weight)
    backend = select(input, others)
    if v.must_check_values(input.device) and readable(input, perm, target, target_b):
        check_target_values(target, perm, logits.shape[1], ignore_index, target_b)
    return backend.ops.mixed_linear_cross_entropy(
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
        chunk_size=chunk_size,
    )


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
