"""The mixed cross-entropy of a linear head, without all of its logits."""

from __future__ import annotations

from torch import Tensor

from .. import validation as v
from .. import validation_targets as vt
from ..dispatch import select
from ..tracing import beyond_kernels, is_dtensor, readable
from .head import LINEAR_REDUCTIONS, check_chunk_size, check_head
from .loss_arguments import check_loss_arguments
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
        TypeError, ValueError, IndexError: as in :func:`mixed_cross_entropy`; ValueError also for a
            chunk_size below 1.

    All logits are held at once where only plain PyTorch serves: for a gradient of lam, weight or
    float targets, under torch.func, and in a double backward.

    Equivalent PyTorch: ``mixed_cross_entropy(F.linear(input, linear_weight, linear_bias), ...)``.
    Source: chunks as in Liger Kernel's fused linear cross-entropy (Hsu et al., 2024).

    >>> features = backbone(x)  # (N, D)
    >>> loss = mixed_linear_cross_entropy(features, head.weight, y, perm, 0.3)
    """
    if is_dtensor(linear_weight) or is_dtensor(input):
        from ..distributed.dtensor import mixed_linear_cross_entropy_of_dtensor

        return mixed_linear_cross_entropy_of_dtensor(
            mixed_linear_cross_entropy,
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
    dtype = check_head(input, linear_weight, linear_bias)
    # Has the logits' shape, dtype and device, but no memory.
    logits = input.detach().new_empty((), dtype=dtype).expand(len(input), len(linear_weight))
    target, perm, lam, target_b, ignore_index, label_smoothing, z_loss, softcap = (
        check_loss_arguments(
            logits, target, perm, lam, target_b, ignore_index, label_smoothing, z_loss, softcap
        )
    )
    vt.check_reduction(reduction, LINEAR_REDUCTIONS)
    chunk_size = check_chunk_size(chunk_size)
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
