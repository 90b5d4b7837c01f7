"""The loss, and a linear head with it, where each process has some of the classes.

Made in every one of the processes, with the same random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mmix_fast import distributed, mixed_cross_entropy, mixed_linear_cross_entropy

from ..problem import OURS, Implementation, Maker, Op, Problem
from ..runner import Effort
from ..wire import Wire
from .common import make_inputs, tolerances, two_terms
from .linear import head_tolerances, make_head

Shape = tuple[int, ...]  # rows, features of the head, classes
SHAPE, QUICK_SHAPE = (256, 128, 100_000), (256, 128, 10_000)
RANKS = (1, 2)
# Rounds alone, not seconds: the processes must agree when to stop.
EFFORT, QUICK_EFFORT = Effort(15, 0.0), Effort(7, 0.0)
MEGATRON, UNSHARDED = "Megatron's way", "unsharded"
Inputs = tuple[Tensor, ...]  # of which each gets a gradient


class ParallelCrossEntropy(torch.autograd.Function):
    """The vocabulary-parallel cross-entropy of Megatron-LM for two labels, in plain PyTorch.

    Three all-reduces: the max, the logits of both labels, the sum of the exponentials. The
    softmax is kept for the backward, which overwrites it with the gradient.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, labels: Tensor, shares: Tensor, offset: int) -> Tensor:
        top = z.amax(1)
        dist.all_reduce(top, dist.ReduceOp.MAX)
        softmax = z - top.unsqueeze(1)
        own = labels - offset
        here = (own >= 0) & (own < z.shape[1])
        own = own.clamp(0, z.shape[1] - 1)
        picked = softmax.gather(1, own).masked_fill_(~here, 0)
        dist.all_reduce(picked)
        total = softmax.exp_().sum(1)
        dist.all_reduce(total)
        ctx.softmax = softmax.div_(total.unsqueeze(1))
        ctx.save_for_backward(own, shares * here)
        return (total.log() - (shares * picked).sum(1)).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        own, shares = ctx.saved_tensors
        softmax = ctx.softmax.scatter_add_(1, own, -shares)
        return softmax.mul_(grad / len(own)), None, None, None


def megatron(z: Tensor, y: Tensor, perm: Tensor, lam: Tensor, offset: int) -> Tensor:
    shares = torch.stack([lam, 1 - lam]).to(z.dtype)
    return ParallelCrossEntropy.apply(z, torch.stack([y, y[perm]], 1), shares, offset)


def own_part(classes: int) -> tuple[int, int]:
    """The first and one after the last class of this process."""
    size = -(-classes // dist.get_world_size())
    begin = min(dist.get_rank() * size, classes)
    return begin, min(begin + size, classes)


def step_of(loss: Callable[..., Tensor], *rest: Tensor) -> Op:
    """The loss, and its gradients to the input and to ``rest``."""

    def step(x: Tensor) -> Inputs:
        value = loss(x, *rest)
        return value.detach(), *torch.autograd.grad(value, (x, *rest))

    return step


def wire_of(loss: Callable[..., Tensor], *inputs: Tensor) -> dict:
    with Wire() as forward:
        value = loss(*inputs)
    with Wire() as backward:
        torch.autograd.grad(value, inputs)
    rows = len(inputs[0])
    return {"wire": {"forward": forward.of_rows(rows), "backward": backward.of_rows(rows)}}


def problem(
    op: str,
    shape: Shape,
    losses: dict[str, Callable[..., Tensor]],
    inputs: Inputs,
    expected: Inputs,
    near: tuple[float, float],
    whole: Op,
) -> Problem:
    """``losses``: of this process's ``inputs``. ``whole``: one process has all classes; only the
    first runs it, while the others wait."""
    x, *rest = (t.detach().clone().requires_grad_() for t in inputs)
    ranks = dist.get_world_size()
    implementations = {
        name: Implementation(step_of(loss, *rest), expected, *near) for name, loss in losses.items()
    }
    implementations[UNSHARDED] = Implementation(whole if dist.get_rank() == 0 else lambda x: x)
    return Problem(
        f"{op}, {ranks} process{'es' * (ranks > 1)}",
        shape,
        x.dtype,
        lambda: x.detach().clone().requires_grad_(),
        implementations,
        cold=False,
        threads=1,
        notes={name: wire_of(loss, x, *rest) for name, loss in losses.items()},
    )


def loss(shape: Shape, dtype: torch.dtype) -> Problem:
    rows, _, classes = shape
    z, *labels = make_inputs((rows, classes), dtype, "cpu")
    begin, end = own_part(classes)
    wide = z.double().requires_grad_()
    value = two_terms(wide, *labels)
    expected = value.detach(), torch.autograd.grad(value, wide)[0][:, begin:end]
    losses = {
        OURS: lambda z: distributed.mixed_cross_entropy(
            z, *labels, num_classes=classes, class_offset=begin
        ),
        MEGATRON: lambda z: megatron(z, *labels, begin),
    }
    all_logits = z.clone().requires_grad_()
    whole = step_of(lambda z: mixed_cross_entropy(z, *labels))
    return problem(
        "loss",
        (rows, classes),
        losses,
        (z[:, begin:end],),
        expected,
        tolerances(z),
        lambda _: whole(all_logits),
    )


def head(shape: Shape, dtype: torch.dtype) -> Problem:
    x, w, *labels = make_head(shape, dtype, "cpu")
    begin, end = own_part(len(w))
    wide, weight = x.double(), w.double()
    z = F.linear(wide, weight).requires_grad_()
    value = two_terms(z, *labels)
    grad = torch.autograd.grad(value, z)[0][:, begin:end]
    # Of the features, the part of the local classes: the sum over the processes is not timed.
    expected = value.detach(), grad @ weight[begin:end], grad.t() @ wide
    losses = {
        OURS: lambda x, w: distributed.mixed_linear_cross_entropy(
            x, w, *labels, num_classes=shape[-1], class_offset=begin
        ),
        MEGATRON: lambda x, w: megatron(F.linear(x, w), *labels, begin),
    }
    whole = step_of(
        lambda x, w: mixed_linear_cross_entropy(x, w, *labels), w.clone().requires_grad_()
    )
    near = head_tolerances(dtype, len(x))
    return problem("linear head", shape, losses, (x, w[begin:end]), expected, near, whole)


def makers(
    shapes: tuple[Shape, ...] | None, dtypes: tuple[torch.dtype, ...], quick: bool
) -> list[Maker]:
    return [
        partial(kind, shape, dtype)
        for shape in shapes or ((QUICK_SHAPE if quick else SHAPE),)
        for dtype in dtypes
        for kind in (loss, head)
    ]
