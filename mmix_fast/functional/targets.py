"""Soft targets, alone or together with a batch that is mixed in place."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import validation as v
from .. import validation_targets as vt
from ..dispatch import select
from ..tracing import beyond_kernels
from .mixing import check_mix
from .values import check_target_values, checks_here


def mix_targets(
    target: Tensor,
    perm: Tensor | None,
    lam: float | Tensor,
    *,
    target_b: Tensor | None = None,
    num_classes: int | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Soft targets of a mixed batch: ``lam*q(y) + (1-lam)*q(y[perm])``.

    ``q(y) = (1-eps)*onehot(y) + eps/C`` with eps the label smoothing; an ignored label gives a
    zero row. If both labels of a sample are equal, their weights add up.

    Args:
        target: labels ``(B,)`` or ``(B, d1, ...)`` of any integer dtype (int64 is taken as it is,
            others are converted), or float targets ``(B, C, ...)``. ``(B, 1)`` labels raise.
        perm: int64 ``(B,)``, a permutation of 0..B-1, or None if target_b is given.
        lam: as in :func:`mix`.
        target_b: the partners' targets instead of ``target[perm]``, of target's shape and kind:
            of a second batch (``other`` of :func:`mix`), ``target_b[perm]`` or as they are.
        num_classes: C; required for labels, never inferred from the data.
        label_smoothing: eps in [0, 1].
        ignore_index: the label that contributes nothing.
        dtype: of the result.

    Returns:
        ``(B, C)`` or ``(B, C, d1, ...)`` of ``dtype``.

    Raises:
        TypeError, ValueError: as in :func:`mix`; also if num_classes is missing or does not match
            target, or if neither or both of perm and target_b are given.
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
    target, target_b = vt.check_partners(target, perm, target_b)
    lam = v.check_lam(lam, target.shape[0], target.device)
    backend = select(target, beyond_kernels(target=target, target_b=target_b, lam=lam))
    if checks_here(backend, target, perm, target, target_b):
        check_target_values(target, perm, classes, ignore_index, target_b)
    return backend.ops.mix_targets(
        target,
        perm,
        lam,
        target_b=target_b,
        num_classes=classes,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        dtype=dtype,
    )


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
    """:func:`mix_` of x and :func:`mix_targets` of target; all checks run before any write.

    Args:
        x, perm, lam: as in :func:`mix`; the batch is dimension 0 of x, which is overwritten.
        target: as in :func:`mix_targets`, on x's device.
        num_classes, label_smoothing, ignore_index, dtype: as there.

    Returns:
        ``(x, soft_targets)``.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as the two functions.

    Equivalent PyTorch: ``mix_(x, perm, lam), mix_targets(target, perm, lam, ...)``.
    Source: Verma et al., Manifold Mixup, ICML 2019, equation 1.

    >>> x, t = mix_batch_(torch.rand(2, 3), torch.tensor([0, 1]), torch.tensor([1, 0]), 0.75,
    ...                   num_classes=2)
    """
    _, lam = check_mix(x, perm, lam, 0)
    v.check_inplace(x, lam)
    target, classes, label_smoothing, ignore_index = vt.check_targets(
        target, num_classes, label_smoothing, ignore_index, dtype
    )
    vt.check_same_batch(target, x)
    beyond = beyond_kernels(target=target, lam=lam)
    backend = select(x, beyond)
    if checks_here(backend, x, perm, target):
        check_target_values(target, perm, classes, ignore_index)
    options = {
        "num_classes": classes,
        "label_smoothing": label_smoothing,
        "ignore_index": ignore_index,
        "dtype": dtype,
    }
    if beyond:  # of the targets: kernels may still mix x
        soft = backend.ops.mix_targets(target, perm, lam, **options)
        return select(x).ops.mix_(x, perm, lam), soft
    return backend.ops.mix_batch_(x, target, perm, lam, **options)
