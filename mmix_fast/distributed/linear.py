"""The mixed cross-entropy of a linear head whose classes are sharded over processes, in chunks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .. import validation_targets as vt
from ..autograd.linear_loss import Head, linear_loss
from ..functional.head import LINEAR_REDUCTIONS, check_chunk_size, check_head
from ..functional.loss_arguments import check_loss_arguments
from ..functional.mixed_target import MixedTarget
from ..linear_chunks import ChunkTargets, default_chunk_size, factor_of, run_chunks
from .collective import PART, Shard, gather
from .cross_entropy import all_logits, make_shard, sharded_tensors
from .sharded_loss import ShardedCall, loss_and_stats


def mixed_linear_cross_entropy(
    input: Tensor,
    local_weight: Tensor,
    target: Tensor | MixedTarget,
    perm: Tensor | None = None,
    lam: float | Tensor | None = None,
    *,
    group: Any = None,
    num_classes: int,
    class_offset: int,
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
    """:func:`mmix_fast.mixed_linear_cross_entropy` where each process has some rows of the weight.

    A column-parallel head with its loss. One all-gather for each chunk, of four numbers a row, and
    one before them that compares the shards; none in the backward.

    **The gradient of the input is that of the local classes.** It must be summed over the group, as
    for any column-parallel linear layer: give DTensors to
    :func:`mmix_fast.mixed_linear_cross_entropy`, which does it, or use an op before this one whose
    backward is an all-reduce.

    Args:
        input: ``(N, D)``, the same on all ranks.
        local_weight, linear_bias: ``(n, D)`` and ``(n,)``, of the classes from class_offset on.
        chunk_size: the same on all ranks. None: as in the function of one process, for
            num_classes/ranks classes.
        The others: as in :func:`mmix_fast.distributed.mixed_cross_entropy`.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as
            :func:`mmix_fast.distributed.mixed_cross_entropy`.

    Equivalent PyTorch: ``mixed_cross_entropy(F.linear(input, local_weight, linear_bias), ...)``,
    the logits of all ranks joined.
    Source: as :func:`mmix_fast.distributed.mixed_cross_entropy`; the chunks as in Liger Kernel's
    fused linear cross-entropy (Hsu et al., 2024).

    >>> loss = mixed_linear_cross_entropy(
    ...     features, head.weight, y, perm, 0.3, num_classes=100_000, class_offset=rank * 50_000
    ... )
    """
    check_head(input, local_weight, linear_bias)
    shard = make_shard(group, num_classes, class_offset, local_weight.shape[0])
    return sharded_linear(
        shard,
        input,
        local_weight,
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


def sharded_linear(
    shard: Shard,
    input: Tensor,
    local_weight: Tensor,
    target: Any,
    perm: Any,
    lam: Any,
    *,
    linear_bias: Any,
    target_b: Any,
    weight: Any,
    ignore_index: Any,
    reduction: Any,
    label_smoothing: Any,
    z_loss: Any,
    softcap: Any,
    chunk_size: Any,
) -> Tensor:
    """mixed_linear_cross_entropy with its group, number of classes and offset in ``shard``."""
    dtype = check_head(input, local_weight, linear_bias)
    vt.check_reduction(reduction, LINEAR_REDUCTIONS)
    chunk_size = check_chunk_size(chunk_size)
    checked = check_loss_arguments(
        all_logits(input, shard, dtype), target, perm, lam, target_b, ignore_index,
        label_smoothing, z_loss, softcap,
    )  # fmt: skip
    target, perm, lam, target_b, ignore_index, label_smoothing, z_loss, softcap = checked
    options = ignore_index, reduction, label_smoothing, z_loss, softcap or 0.0
    tensors, namespace = sharded_tensors(
        input, dtype, target, perm, lam, target_b, weight, options, shard, _no_rows
    )
    # Ranks that differ in num_classes would differ in the number of chunks, and wait for ever; and
    # one that raised is told of before the others begin.
    gather(_no_rows(input), shard)
    shard = shard._replace(trusted=True)
    if chunk_size is None:
        ranks = dist.get_world_size(shard.group)
        classes = -(-shard.num_classes // ranks)
        rows, features = input.shape
        chunk_size = default_chunk_size(rows, features, classes, input.device)
    of_shard = *options, shard.class_offset, shard.num_classes
    call = ShardedLinearCall(ShardedCall(namespace, of_shard, shard), dtype, chunk_size)
    return linear_loss(input, local_weight, linear_bias, tensors, call)


def _no_rows(input: Tensor) -> Tensor:
    return input.new_empty((0, PART), dtype=torch.float32)


class ShardedLinearCall(NamedTuple):
    """What LinearLossCall is for one process."""

    loss: ShardedCall
    dtype: torch.dtype
    chunk_size: int

    def factor(self, rows: int) -> int:
        return factor_of(self.dtype, self.loss.options[1], rows)

    def run(self, head: Head, tensors: tuple[Any, ...], wanted: list[bool]) -> tuple[Any, ...]:
        *targets, weight, scales = tensors
        call = self.loss

        def step(z: Tensor, own: tuple[Any, ...], scales: Tensor | None, gradient: bool) -> Tensor:
            arguments = *own, weight, scales
            loss, stats = loss_and_stats(z, arguments, call)
            if gradient:
                unit = loss.new_ones(())
                call.op("cross_entropy_backward_")(unit, stats, z, *arguments, *call.options)
            return loss

        return run_chunks(
            step,
            *head,
            self.dtype,
            self.chunk_size,
            wanted,
            ChunkTargets(*targets),
            scales,
            self.factor(head[0].shape[0]),
        )

    def differentiable(self, *_: Any) -> Any:
        raise RuntimeError("the loss of sharded classes has no double backward and no vmap")
