"""The public ops: check the arguments, let dispatch choose a backend, run it."""

from __future__ import annotations

import torch
from torch import Tensor

from . import autograd, reference
from . import validation as v
from . import validation_targets as vt
from .dispatch import Backend, select
from .ops import kernel
from .tracing import beyond_kernels, explained_writes, readable, transformed


def _checks_here(backend: Backend, x: Tensor, *read: Tensor | None) -> bool:
    return not backend.checks_values and v.must_check_values(x.device) and readable(*read)


def mix(x: Tensor, perm: Tensor, lam: float | Tensor, *, dim: int = 0) -> Tensor:
    """Mix a batch with a shuffled copy of itself: ``y[i] = lam*x[i] + (1-lam)*x[perm[i]]``.

    λ weights the sample itself (composer and kornia weight the partner). A side whose
    coefficient is exactly 0 is absent: its inf or NaN does not leak.

    Args:
        x: float16, bfloat16, float32 or float64, any shape with a batch dimension of size B, any
            strides. Arithmetic is float32 (float64 for float64), rounded once.
        perm: int64 ``(B,)``, a permutation of 0..B-1 on x's device.
        lam: float, 0-dim tensor, or ``(B,)`` tensor of per-sample λ; any value, no unit. Either
            shape may have 1s after it, whatever ``dim`` is: ``(1,)`` and ``(1, 1)`` are one λ for
            all, ``(B, 1, 1, 1)`` one for each (at B = 1 too). A NumPy scalar or 0-dim array is a
            float. Its gradient has lam's own shape and dtype.
        dim: the batch dimension.

    Returns:
        A new tensor with the shape, dtype and memory format of x. Differentiable in x and lam.

    Raises:
        TypeError: wrong type or dtype.
        ValueError: wrong shape or device, or perm is no permutation.
        IndexError: dim out of range.

    Equivalent PyTorch: ``lam * x + (1 - lam) * x[perm]``.
    Source: Verma et al., Manifold Mixup, ICML 2019, equation 1.

    >>> mix(torch.tensor([[0.0], [1.0]]), torch.tensor([1, 0]), 0.75)
    tensor([[0.2500],
            [0.7500]])
    """
    dim, lam = _check_mix(x, perm, lam, dim)
    backend = select(x)
    if _checks_here(backend, x, perm):
        v.check_permutation_values(perm)
    if not backend.namespace:
        return reference.mix(x, perm, lam, dim=dim)
    lam_tensor = v.as_lam(lam, v.compute_dtype(x.dtype), x.device)
    return autograd.mix(x, perm.contiguous(), lam_tensor, dim, False, backend.namespace)


def mix_(x: Tensor, perm: Tensor, lam: float | Tensor, *, dim: int = 0) -> Tensor:
    """:func:`mix`, overwriting x and returning it; only index data is allocated.

    Besides what :func:`mix` raises, RuntimeError, before anything is written, where x is a leaf
    that requires grad or a view of one, where x overlaps itself in memory (``expand``), or where
    lam requires grad. x's version is bumped, so a layer that needs its output for backward (ReLU)
    raises in backward: use :func:`mix` there.

    Equivalent PyTorch: ``x.copy_(lam * x + (1 - lam) * x[perm])``.
    Source: Verma et al., Manifold Mixup, ICML 2019, equation 1.

    >>> mix_(torch.tensor([[0.0], [1.0]]), torch.tensor([1, 0]), 0.75)
    tensor([[0.2500],
            [0.7500]])
    """
    dim, lam = _check_mix(x, perm, lam, dim)
    v.check_inplace(x, lam)
    if transformed():
        mixed = mix(x.clone(), perm, lam, dim=dim)  # whose backward may need what it reads
        with explained_writes("mix_"):
            return x.copy_(mixed)
    backend = select(x)
    if _checks_here(backend, x, perm):
        v.check_permutation_values(perm)
    if not backend.namespace:
        return reference.mix_(x, perm, lam, dim=dim)
    lam_tensor = v.as_lam(lam, v.compute_dtype(x.dtype), x.device)
    return autograd.mix_inplace(x, perm.contiguous(), lam_tensor, dim, backend.namespace)


def _check_mix(
    x: Tensor, perm: Tensor, lam: float | Tensor, dim: int
) -> tuple[int, float | Tensor]:
    v.check_x(x)
    dim = v.check_dim(x, dim)
    v.check_perm(perm, x.shape[dim], x.device)
    return dim, v.check_lam(lam, x.shape[dim], x.device)


def mix_targets(
    target: Tensor,
    perm: Tensor,
    lam: float | Tensor,
    *,
    num_classes: int | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Soft targets of a mixed batch: ``lam*q(y) + (1-lam)*q(y[perm])``.

    ``q(y) = (1-eps)*onehot(y) + eps/C`` with eps the label smoothing; an ignored label gives a
    zero row. Two equal labels add their masses.

    Args:
        target: labels ``(B,)`` or ``(B, d1, ...)`` of any integer dtype (int64 is taken as it is,
            others are converted), or float targets ``(B, C, ...)``. ``(B, 1)`` labels are refused.
        perm, lam: as in :func:`mix`.
        num_classes: C; needed for labels, never inferred from the data.
        label_smoothing: eps in [0, 1].
        ignore_index: the label that contributes nothing.
        dtype: of the result.

    Returns:
        ``(B, C)`` or ``(B, C, d1, ...)`` of ``dtype``.

    Raises:
        TypeError, ValueError: as in :func:`mix`, or num_classes missing or at odds with target.
        IndexError: a label outside [0, C-1] that is not ignore_index.

    Equivalent PyTorch: ``lam*q + (1-lam)*q[perm]`` with ``q = (1-eps)*F.one_hot(y, C) + eps/C``.
    Source: Verma et al., Manifold Mixup, ICML 2019, equation 1.

    >>> mix_targets(torch.tensor([0, 1]), torch.tensor([1, 0]), 0.75, num_classes=2)
    tensor([[0.7500, 0.2500],
            [0.2500, 0.7500]])
    """
    target, classes, label_smoothing, ignore_index = vt.check_targets(
        target, num_classes, label_smoothing, ignore_index, dtype
    )
    v.check_perm(perm, target.shape[0], target.device)
    lam = v.check_lam(lam, target.shape[0], target.device)
    backend = select(target, beyond_kernels(target=target, lam=lam))
    if _checks_here(backend, target, perm, target):
        _check_target_values(target, perm, classes, ignore_index)
    if not backend.namespace:
        return reference.mix_targets(
            target,
            perm,
            lam,
            num_classes=classes,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            dtype=dtype,
        )
    return kernel(backend.namespace, "mix_targets")(
        target.contiguous(),
        perm.contiguous(),
        v.as_lam(lam, _targets_arithmetic(target, dtype), target.device),
        classes,
        label_smoothing,
        ignore_index,
        dtype,
    )


def _check_target_values(target: Tensor, perm: Tensor, classes: int, ignore_index: int) -> None:
    v.check_permutation_values(perm)
    if target.dtype == torch.int64:
        v.check_label_values("target", target, classes, ignore_index)


def _targets_arithmetic(target: Tensor, dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in (target.dtype, dtype) else torch.float32


def mix_batch_(
    x: Tensor,
    target: Tensor,
    perm: Tensor,
    lam: float | Tensor,
    *,
    num_classes: int | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """:func:`mix_` of x and :func:`mix_targets` of target, nothing written before all checks.

    Args: as of the two; x has its batch first, and target is on its device. Returns
    ``(x, soft_targets)``. Raises as the two.

    Equivalent PyTorch: ``mix_(x, perm, lam), mix_targets(target, perm, lam, ...)``.
    Source: Verma et al., Manifold Mixup, ICML 2019, equation 1.

    >>> x, t = mix_batch_(torch.rand(2, 3), torch.tensor([0, 1]), torch.tensor([1, 0]), 0.75,
    ...                   num_classes=2)
    """
    _, lam = _check_mix(x, perm, lam, 0)
    v.check_inplace(x, lam)
    target, classes, label_smoothing, ignore_index = vt.check_targets(
        target, num_classes, label_smoothing, ignore_index, dtype
    )
    vt.check_same_batch(target, x)
    backend = select(x, beyond_kernels(target=target, lam=lam))
    options = (classes, label_smoothing, ignore_index, dtype)
    if not backend.namespace or torch.compiler.is_compiling():
        # The targets first: their value checks come before x is touched.
        soft = mix_targets(
            target,
            perm,
            lam,
            num_classes=classes,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            dtype=dtype,
        )
        return mix_(x, perm, lam), soft
    if _checks_here(backend, x, perm, target):
        _check_target_values(target, perm, classes, ignore_index)
    # The kernel rounds λ to the arithmetic of x and of the targets, which may differ in width.
    wide = torch.float64 in (v.compute_dtype(x.dtype), _targets_arithmetic(target, dtype))
    lam_tensor = v.as_lam(lam, torch.float64 if wide else torch.float32, x.device)
    return autograd.MixBatchFn.apply(
        x, perm.contiguous(), lam_tensor, (target.contiguous(), *options), backend.namespace
    )


def mixed_cross_entropy(
    logits: Tensor,
    target: Tensor,
    perm: Tensor | None,
    lam: float | Tensor,
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
    """Cross-entropy against mixed labels, keeping neither softmax nor soft targets.

    Args:
        logits: ``(B, C)`` or ``(B, C, d1, ...)``, floating, any strides. A class at -inf is masked.
        target: labels ``(B, d1, ...)`` of any integer dtype (int64 is taken as it is, others are
            converted), or float probabilities of the logits' shape.
        perm: int64 ``(B,)``, or None where target_b is given.
        lam: as in :func:`mix`.
        target_b: the partners' labels (or probabilities) instead of ``target[perm]``.
        weight: ``(C,)`` class weights, the logits' dtype or float32.
        ignore_index: a label that counts for nothing.
        reduction: "mean" | "sum" | "none", PyTorch's meaning. With per-sample λ the mean divides
            by ``sum_i lam_i*w[y_i]*valid_i + (1-lam_i)*w[y'_i]*valid'_i``.
        label_smoothing: in [0, 1].
        z_loss: adds ``z_loss * logsumexp(z)**2`` a row, weighted by λ where a label is ignored.
        softcap: logits become ``softcap*tanh(z/softcap)`` first; -inf stays -inf.
        inplace_backward: the gradient takes the logits' own storage (no memory of logits size);
            any other use of the logits in autograd, a second or a double backward then raises.
            Nothing can raise where they are only read: after the backward the logits, and what
            shares their memory (``logits.detach()``), hold the gradient. Take the accuracy before.
            On a GPU also the faster choice where the gradient of the loss is not 1 (GradScaler):
            it moves the logits' bytes three times, a gradient of its own four times.

    Returns:
        The loss: 0-dim, or ``(B, d1, ...)`` for "none"; float32 for half-precision logits.

    Raises:
        TypeError, ValueError: as in :func:`mix`, or neither or both of perm and target_b given.
        IndexError: a label outside [0, C-1] that is not ignore_index.

    Equivalent PyTorch:
        ``lam*F.cross_entropy(z, y, **kw) + (1-lam)*F.cross_entropy(z, y[perm], **kw)``
    Source: Verma et al., Manifold Mixup, ICML 2019, equation 2; z-loss: PaLM, section 5.

    >>> mixed_cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([1, 0]), 0.75)
    tensor(0.6931)
    """
    v.check_logits(logits)
    target, target_b, ignore_index = vt.check_loss(
        logits, target, perm, target_b, weight, ignore_index, reduction
    )
    label_smoothing = v.check_fraction("label_smoothing", label_smoothing)
    z_loss, softcap = vt.check_positive(z_loss, softcap)
    lam = v.check_lam(lam, logits.shape[0], logits.device)
    labels = not target.is_floating_point()
    others = beyond_kernels(target=target, target_b=target_b, lam=lam, weight=weight)
    backend = select(logits, others)
    if _checks_here(backend, logits, perm, target, target_b):
        if perm is not None:
            v.check_permutation_values(perm)
        for name, y in (("target", target), ("target_b", target_b)):
            if labels and y is not None:
                v.check_label_values(name, y, logits.shape[1], ignore_index)
    if not backend.namespace:
        return reference.mixed_cross_entropy(
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
        )
    if labels:
        target = target.contiguous()
        target_b = None if target_b is None else target_b.contiguous()
    rest = (
        target,
        None if perm is None else perm.contiguous(),
        target_b,
        v.as_lam(lam, v.compute_dtype(logits.dtype), logits.device),
        None if weight is None else weight.contiguous(),
    )
    options = (ignore_index, reduction, label_smoothing, z_loss, softcap or 0.0)
    # In a compiled graph the buffers are the compiler's own; overlapping memory cannot be reused.
    inplace = inplace_backward and not torch.compiler.is_compiling() and not v.overlaps(logits)
    return autograd.cross_entropy(
        logits, rest, autograd.LossCall(options, backend.namespace, inplace)
    )
