"""The mixed cross-entropy."""

from __future__ import annotations

from torch import Tensor

from .. import validation as v
from .. import validation_targets as vt
from ..dispatch import select
from ..tracing import beyond_kernels, is_dtensor
from .loss_arguments import check_loss_arguments
from .mixed_target import MixedTarget
from .values import checks_here


def mixed_cross_entropy(
    logits: Tensor,
    target: Tensor | MixedTarget,
    perm: Tensor | None = None,
    lam: float | Tensor | None = None,
    *,
    target_b: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    inplace_backward: bool = False,
) -> Tensor:
    """Cross-entropy against mixed labels; stores neither the softmax nor soft targets.

    Args:
        logits: ``(B, C)`` or ``(B, C, d1, ...)``, floating, any strides. -inf masks a class. Or a
            DTensor that is sharded over its classes: see :mod:`mmix_fast.distributed`.
        target: labels ``(B, d1, ...)`` of any integer dtype (int64 is taken as it is, others are
            converted), or float probabilities of the logits' shape. A :class:`MixedTarget` stands
            for target, perm, lam, target_b and label_smoothing; none of them may then be given.
        perm: int64 ``(B,)``, or None if target_b is given.
        lam: as in :func:`mix`.
        target_b: the partners' labels (or probabilities) instead of ``target[perm]``, of target's
            shape.
        weight: ``(C,)`` class weights, the logits' dtype or float32.
        ignore_index: the label that contributes nothing.
        reduction: "mean" | "sum" | "none", as in PyTorch. With per-sample λ the mean divides
            by ``sum_i lam_i*w[y_i]*valid_i + (1-lam_i)*w[y'_i]*valid'_i``.
        label_smoothing: in [0, 1].
        z_loss: adds ``z_loss * logsumexp(z)**2`` per row, times the λ weight of its labels that
            are not ignored.
        softcap: logits become ``softcap*tanh(z/softcap)`` first; -inf stays -inf.
        inplace_backward: backward writes the gradient into the logits' storage and allocates
            nothing of the logits' size. Any other use of the logits in autograd, a second backward
            and a double backward then raise. A plain read cannot raise: after backward the logits,
            and what shares their memory (``logits.detach()``), hold the gradient. Compute the
            accuracy before backward. On a GPU this is also faster if the upstream gradient is not 1
            (GradScaler): it moves the logits' bytes three times, a separate gradient four times.

    Returns:
        The loss: 0-dim, or ``(B, d1, ...)`` for "none"; float32 for half-precision logits.

    Raises:
        TypeError, ValueError: as in :func:`mix`; also if neither or both of perm and target_b are
            given, or any argument that a MixedTarget stands for.
        IndexError: a label outside [0, C-1] that is not ignore_index.

    Equivalent PyTorch: ``lam*F.cross_entropy(z, y, **kw) + (1-lam)*F.cross_entropy(z, y[perm],
    **kw)``.
    Source: Verma et al., Manifold Mixup, ICML 2019, equation 2; z-loss: PaLM, section 5.

    >>> mixed_cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([1, 0]), 0.75)
    tensor(0.6931)
    """
    if is_dtensor(logits):
        from ..distributed.dtensor import mixed_cross_entropy_of_dtensor

        return mixed_cross_entropy_of_dtensor(
            mixed_cross_entropy,
            logits,
            target,
            perm,
            lam,
            target_b=target_b,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            inplace_backward=inplace_backward,
        )
    v.check_logits(logits)
    target, perm, lam, target_b, ignore_index, label_smoothing, z_loss, softcap = (
        check_loss_arguments(
            logits, target, perm, lam, target_b, ignore_index, label_smoothing, z_loss, softcap
        )
    )
    vt.check_reduction(reduction)
    target, target_b = vt.check_loss_targets(logits, target, perm, target_b, ignore_index)
    if weight is not None:
        vt.check_weight("weight", weight, logits)
    labels = not target.is_floating_point()
    others = beyond_kernels(target=target, target_b=target_b, lam=lam, weight=weight)
    backend = select(logits, others)
    if checks_here(backend, logits, perm, target, target_b):
        if perm is not None:
            v.check_permutation_values(perm)
        for name, y in (("target", target), ("target_b", target_b)):
            if labels and y is not None:
                v.check_label_values(name, y, logits.shape[1], ignore_index)
    return backend.ops.mixed_cross_entropy(
        logits,
        target,
        perm,
        lam,
        target_b=target_b,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        inplace_backward=inplace_backward,
    )
