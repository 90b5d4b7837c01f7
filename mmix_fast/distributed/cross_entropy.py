"""The mixed cross-entropy of logits whose classes are sharded over processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import validation as v
from .. import validation_targets as vt
from ..arithmetic import as_lam, compute_dtype
from ..dispatch import select
from ..functional.loss_arguments import check_loss_arguments
from ..functional.mixed_target import MixedTarget
from ..functional.values import check_target_values
from ..layouts import overlaps
from ..mean_scales import mean_scales
from ..reference.terms import partners
from ..scalars import check_index
from ..tracing import beyond_kernels, readable
from .collective import Shard, check_group
from .sharded_loss import ShardedCall, Tensors, empty_part, refuse, sharded_loss


def mixed_cross_entropy(
    local_logits: Tensor,
    target: Tensor | MixedTarget,
    perm: Tensor | None = None,
    lam: float | Tensor | None = None,
    *,
    group: Any = None,
    num_classes: int,
    class_offset: int,
    target_b: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    inplace_backward: bool = False,
) -> Tensor:
    """:func:`mmix_fast.mixed_cross_entropy` where each process has the logits of some classes.

    One all-gather of four numbers a row in the forward, no collective in the backward. All
    arguments except ``local_logits`` and ``class_offset`` are the same on all ranks, and so is the
    result. The gradient is that of the local logits, the same as on one process.

    Args:
        local_logits: ``(B, n, ...)``, the classes from ``class_offset`` on; n may differ from rank
            to rank and may be 0.
        target, target_b: as in :func:`mmix_fast.mixed_cross_entropy`; labels and probabilities are
            of all classes.
        perm, lam, ignore_index, reduction, label_smoothing, z_loss, softcap: as there.
        inplace_backward: as there, for the local logits.
        group: the ProcessGroup of the ranks that share the classes; None: the default group.
        num_classes: C, over all ranks.
        class_offset: the number of the first local class. The shards may come in any order.
        weight: ``(C,)``, of all classes.

    Raises:
        TypeError, IndexError: as :func:`mmix_fast.mixed_cross_entropy`.
        ValueError: as there; a group without this process. On every rank: ranks that differ in
            num_classes, shards that overlap or leave a gap.
        RuntimeError: no initialized process group; lam, weight or targets that require grad; a
            double backward. On the other ranks where one raised.

    On a GPU, where the host does not read values, the loss is NaN instead of an error of shards
    that do not fit or of another rank.

    Equivalent PyTorch: ``mmix_fast.mixed_cross_entropy(all_logits, ...)``, where ``all_logits`` has
    the logits of all ranks, joined along dimension 1.
    Source: the parallel cross-entropy of Megatron-LM (Shoeybi et al., 2019, section 3), which has
    hard labels and three collectives.

    >>> loss = mixed_cross_entropy(
    ...     local_logits, y, perm, 0.3, num_classes=100_000, class_offset=rank * 50_000
    ... )
    """
    v.check_logits(local_logits, "local_logits")
    shard = make_shard(group, num_classes, class_offset, local_logits.shape[1])
    return sharded(
        shard,
        local_logits,
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


def make_shard(group: Any, num_classes: Any, class_offset: Any, classes: int) -> Shard:
    num_classes = check_index("num_classes", num_classes)
    class_offset = check_index("class_offset", class_offset)
    return Shard(check_group(group), num_classes, class_offset, classes)


def sharded(
    shard: Shard,
    logits: Tensor,
    target: Any,
    perm: Any,
    lam: Any,
    *,
    target_b: Any,
    weight: Any,
    ignore_index: Any,
    reduction: Any,
    label_smoothing: Any,
    z_loss: Any,
    softcap: Any,
    inplace_backward: bool,
) -> Tensor:
    """mixed_cross_entropy with its group, number of classes and offset in ``shard``."""
    vt.check_reduction(reduction)
    checked = check_loss_arguments(
        all_logits(logits, shard), target, perm, lam, target_b, ignore_index, label_smoothing,
        z_loss, softcap,
    )  # fmt: skip
    target, perm, lam, target_b, ignore_index, label_smoothing, z_loss, softcap = checked
    options = ignore_index, reduction, label_smoothing, z_loss, softcap or 0.0
    tensors, namespace = sharded_tensors(
        logits, logits.dtype, target, perm, lam, target_b, weight, options, shard, empty_part
    )
    inplace = inplace_backward and not torch.compiler.is_compiling() and not overlaps(logits)
    of_shard = *options, shard.class_offset, shard.num_classes
    return sharded_loss(logits, tensors, ShardedCall(namespace, of_shard, shard, inplace))


def sharded_tensors(
    x: Tensor,
    dtype: torch.dtype,
    target: Any,
    perm: Tensor | None,
    lam: float | Tensor,
    target_b: Any,
    weight: Any,
    options: tuple[Any, ...],
    shard: Shard,
    first: Callable[[Tensor], Tensor],
) -> tuple[Tensors, str | None]:
    """Checks the targets and weights against all classes, and a shard against their number.

    ``x``: the logits, or the input of a head; its first dimension is the batch. Returns the tensors
    of ShardedCall, and the namespace of the backend's ops. Ranks may differ in what fails here, so
    every rank is told, in the first collective: ``first(x)`` has the size of its message.
    """
    ignore_index, reduction, *_ = options
    of_all = all_logits(x, shard, dtype)
    if beyond := beyond_kernels(target=target, target_b=target_b, lam=lam, weight=weight):
        raise RuntimeError(f"the loss of sharded classes has no {beyond}")
    backend = select(x)
    try:
        if shard.class_offset < 0 or shard.class_offset + shard.classes > shard.num_classes:
            raise ValueError(
                f"class_offset must be in [0, {shard.num_classes - shard.classes}] for "
                f"{shard.classes} of {shard.num_classes} classes, got {shard.class_offset}"
            )
        target, target_b = vt.check_loss_targets(of_all, target, perm, target_b, ignore_index)
        if weight is not None:
            vt.check_weight("weight", weight, of_all)
        if v.must_check_values(x.device) and readable(x, perm, target, target_b):
            check_target_values(target, perm, shard.num_classes, ignore_index, target_b)
    except (TypeError, ValueError, IndexError) as failure:
        refuse(first(x), shard, failure)
    coef = as_lam(lam, compute_dtype(dtype), x.device)
    perm = None if perm is None else perm.contiguous()
    weight = None if weight is None else weight.contiguous()
    scales = None
    if reduction == "mean":
        # Of probabilities only the shape counts; one λ has the same sums for permuted labels.
        permuted = perm is not None and (target.is_floating_point() or not coef.ndim)
        partner = target if permuted else partners(target, perm, target_b)
        scales = mean_scales(target, partner, coef, weight, ignore_index, shard.num_classes)
    own, other = _local(target, shard), _local(target_b, shard)
    return (own, perm, other, coef, weight, scales), getattr(backend.ops, "namespace", None)


def all_logits(x: Tensor, shard: Shard, dtype: torch.dtype | None = None) -> Tensor:
    """Has the shape, dtype and device of the logits of all classes, but no memory."""
    if shard.num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {shard.num_classes}")
    one = x.detach().new_empty((), dtype=dtype or x.dtype)
    return one.expand(x.shape[0], shard.num_classes, *x.shape[2:])


def _local(target: Tensor | None, shard: Shard) -> Tensor | None:
    if target is None or target.dtype == torch.int64:
        return None if target is None else target.contiguous()
    return target.narrow(1, shard.class_offset, shard.classes)
