"""The mixed binary cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import validation as v
from .. import validation_targets as vt
from ..dispatch import select
from ..scalars import check_fraction
from ..tracing import beyond_kernels
from .mixed_target import MixedTarget
from .values import checks_here


def mixed_binary_cross_entropy(
    logits: Tensor,
    target: Tensor | MixedTarget,
    perm: Tensor | None = None,
    lam: float | Tensor | None = None,
    *,
    target_b: Tensor | None = None,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    target_threshold: float | None = None,
    inplace_backward: bool = False,
) -> Tensor:
    """Binary cross-entropy of every class against mixed targets, in one pass over the logits.

    The targets are ``t = lam*q + (1-lam)*q_partner``, mixed on the fly. With labels,
    ``q = 1-eps+eps/C`` at the label and ``eps/C`` elsewhere (eps is label_smoothing); with
    multi-hot targets, ``q = (1-eps)*target + eps/2``. No tensor of the logits' size is allocated,
    except the gradient.

    Args:
        logits: ``(B, C)`` or ``(B, C, d1, ...)``, floating, any strides.
        target: labels ``(B, d1, ...)`` of any integer dtype, or multi-hot (or probabilities) of the
            logits' shape: bool, uint8 or floating. A :class:`MixedTarget` stands for target, perm,
            lam, target_b and label_smoothing; none of them may then be given.
        perm: int64 ``(B,)``, or None if target_b is given.
        lam: as in :func:`mix`.
        target_b: the partners' targets instead of ``target[perm]``, of target's shape and kind.
        weight: ``(C,)`` class weights, the logits' dtype or float32.
        pos_weight: ``(C,)`` factors of the positive term, the logits' dtype or float32.
        reduction: "mean" over all elements | "batchmean", the sum over B | "sum" | "none".
        label_smoothing: in [0, 1].
        target_threshold: in [0, 1]; the smoothed and mixed ``t`` becomes 1 where it is strictly
            above, else 0. It is rounded to the dtype of the arithmetic first.
        inplace_backward: as in :func:`mixed_cross_entropy`: backward overwrites the logits.

    Returns:
        The loss: 0-dim, or of the logits' shape for "none"; float32 for half-precision logits, else
        of the logits' dtype.

    A term whose coefficient is exactly 0 (``1-t``, ``t``, a class weight) is absent: a logit of
    -inf whose target is 0 contributes 0, where PyTorch gives NaN.

    Raises:
        TypeError, ValueError: as in :func:`mix`; also if neither or both of perm and target_b are
            given, or any argument that a MixedTarget stands for.
        IndexError: a label outside [0, C-1]. There is no ignore_index.

    Equivalent PyTorch: ``F.binary_cross_entropy_with_logits(z, lam*q + (1-lam)*q[perm], ...)``.
    Source: Wightman et al., ResNet strikes back, 2021, section 3; timm's BinaryCrossEntropy.

    >>> perm = torch.tensor([1, 0])
    >>> mixed_binary_cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), perm, 0.75)
    tensor(0.6931)
    """
    if isinstance(target, MixedTarget):
        target.check_alone(logits, perm, lam, target_b, label_smoothing)
        target, perm, lam, target_b, label_smoothing = target.for_binary_cross_entropy(
            logits.shape[1]
        )
    v.check_logits(logits)
    if perm is not None:
        v.check_perm(perm, logits.shape[0], logits.device)
    lam = v.check_lam(lam, logits.shape[0], logits.device)
    label_smoothing = check_fraction("label_smoothing", label_smoothing)
    if target_threshold is not None:
        target_threshold = check_fraction("target_threshold", target_threshold)
    vt.check_reduction(reduction, vt.BINARY_REDUCTIONS)
    target, target_b = vt.check_binary_targets(logits, target, perm, target_b)
    for name, given in (("weight", weight), ("pos_weight", pos_weight)):
        if given is not None:
            vt.check_weight(name, given, logits)
    others = beyond_kernels(
        target=target, target_b=target_b, lam=lam, weight=weight, pos_weight=pos_weight
    )
    backend = select(logits, others)
    if checks_here(backend, logits, perm, target, target_b):
        if perm is not None:
            v.check_permutation_values(perm)
        for name, y in (("target", target), ("target_b", target_b)):
            if y is not None and y.dtype == torch.int64:
                v.check_label_values(name, y, logits.shape[1], None)
    return backend.ops.mixed_binary_cross_entropy(
        logits,
        target,
        perm,
        lam,
        target_b=target_b,
        weight=weight,
        pos_weight=pos_weight,
        reduction=reduction,
        label_smoothing=label_smoothing,
        target_threshold=target_threshold,
        inplace_backward=inplace_backward,
    )
