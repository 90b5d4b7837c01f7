"""The mixed cross-entropy of sharded classes under autograd: a local pass, one collective, a merge.

The backward needs no collective: it takes the sums over all classes from the forward.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd import Function

from ..arithmetic import compute_dtype
from ..autograd.apply import apply, needs_autograd
from ..mean_scales import counted
from ..ops import kernel
from ..reference import shard as plain
from ..reference.terms import partners
from ..tracing import batched, functorch_active
from .collective import PART, Shard, gather

INF, NAN = float("inf"), float("nan")
Tensors = tuple[Any, ...]  # target, perm, target_b, lam, weight, scales


class ShardedCall(NamedTuple):
    """The arguments of the loss, except its tensors."""

    namespace: str | None  # None: plain PyTorch
    options: tuple[Any, ...]  # of the ops, from ignore_index on
    shard: Shard
    inplace: bool = False  # backward writes the gradient into the logits' storage

    def op(self, name: str) -> Any:
        return getattr(plain, name) if self.namespace is None else kernel(self.namespace, name)


def sharded_loss(logits: Tensor, tensors: Tensors, call: ShardedCall) -> Tensor:
    if needs_autograd(logits.requires_grad):
        return apply(ShardedLossFn, logits, tensors, call)
    return loss_and_stats(logits, tensors, call)[0]


class ShardedLossFn(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tensors: Tensors, call: ShardedCall) -> Tensor:
        loss, stats = loss_and_stats(logits, tensors, call)
        ctx.save_for_backward(logits, stats, *tensors)
        ctx.call = call
        ctx.overwritten = False
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        traced = torch.compiler.is_compiling()
        if functorch_active() or batched(grad) or (torch.is_grad_enabled() and not traced):
            raise RuntimeError("the loss of sharded classes has no double backward and no vmap")
        call = ctx.call
        logits, stats, *tensors = ctx.saved_tensors
        arguments = grad.contiguous(), stats, logits.detach(), *tensors, *call.options
        if not call.inplace:
            return call.op("cross_entropy_backward")(*arguments), None, None
        if ctx.overwritten:  # saved-tensor hooks bypass autograd's version check
            raise RuntimeError(
                "inplace_backward=True overwrites the logits and so allows one backward"
            )
        call.op("cross_entropy_backward_")(*arguments)
        ctx.overwritten = True
        torch.autograd.graph.increment_version(logits)
        return arguments[2], None, None


def loss_and_stats(logits: Tensor, tensors: Tensors, call: ShardedCall) -> tuple[Tensor, Tensor]:
    """The loss, and the stats of all classes that the ops of the backward take."""
    try:
        part = call.op("cross_entropy_part")(logits, *tensors, *call.options)
    except Exception as error:  # a bad label, for one
        refuse(empty_part(logits), call.shard, error)
    parts, fits = gather(part, call.shard)
    top, log_sum, dot, mass = parts.unbind(-1)
    pivot = torch.where(log_sum == -INF, -INF, top).amax(0)
    pivot = torch.where(pivot == -INF, 0, pivot)  # where no shard has a finite logit
    shift = top - pivot
    total = (shift + log_sum).logsumexp(0)
    dot = (dot + torch.where(mass == 0, 0, mass * shift)).sum(0)
    mass = mass.sum(0)
    if fits is not None:
        mass = torch.where(fits, mass, NAN)
    # 0 where no class has a target, although all logits may be -inf, but NaN where one is NaN.
    loss = torch.where((mass == 0) & ~total.isnan(), 0, mass * total) - dot
    if (z_coef := _z_coefficients(len(total), tensors, call)) is not None:
        loss = loss + z_coef * (pivot + total).square()  # where it is 0, so are pivot and part
    return _reduced(loss, logits, tensors, call), torch.stack([pivot, total, mass], 1)


def _z_coefficients(rows: int, tensors: Tensors, call: ShardedCall) -> Tensor | None:
    """Of the squared log-sum-exp of each row; None: there is no z-loss."""
    target, perm, target_b, lam, _, scales = tensors
    ignore_index, _, _, z_loss, *_ = call.options
    if not z_loss:
        return None
    if target.is_floating_point():
        count = target.new_ones(rows, dtype=torch.float64)
    else:
        count = counted(target, partners(target, perm, target_b), lam, ignore_index)
    count = count.reshape(-1) * z_loss
    return (count if scales is None else count * scales[2]).to(lam.dtype)


def _reduced(rows: Tensor, logits: Tensor, tensors: Tensors, call: ShardedCall) -> Tensor:
    reduction, scales = call.options[1], tensors[-1]
    if reduction == "none":
        return rows.reshape(logits.shape[:1] + logits.shape[2:])
    loss = rows.sum()
    return loss if scales is None else loss + scales[3].to(loss.dtype)


def empty_part(logits: Tensor) -> Tensor:
    """Of the size of what the other ranks gather."""
    rows = math.prod(logits.shape[:1] + logits.shape[2:])
    return logits.new_zeros((rows, PART), dtype=compute_dtype(logits.dtype))


def refuse(part: Tensor, shard: Shard, failure: Exception) -> NoReturn:
    """Raises ``failure``. The ranks that reach the collective are told, so that they raise too.

    ``part``: as large as what they gather there.
    """
    gather(part, shard, failed=True)
    raise failure
