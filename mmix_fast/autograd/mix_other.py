"""Mixing with a second batch under autograd. Plain PyTorch serves torch.func and forward mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import reference
from ..layouts import dense_strides, in_order
from ..ops import kernel
from ..reference.terms import inside
from ..tracing import batched, functorch_active
from .apply import apply, needs_autograd
from .mix import lam_grad


def mix_other(
    x: Tensor, other: Tensor, perm: Tensor | None, lam: Tensor, dim: int, namespace: str
) -> Tensor:
    if needs_autograd(x.requires_grad or other.requires_grad or lam.requires_grad):
        return apply(MixOtherFn, x, other, perm, lam, dim, namespace)
    return kernel(namespace, "mix_other")(x, in_order(other, x, dim), perm, lam, dim)


def mix_other_inplace(
    x: Tensor, other: Tensor, perm: Tensor | None, lam: Tensor, dim: int, namespace: str
) -> Tensor:
    if torch.compiler.is_compiling():
        # AOTAutograd and inductor remove the copy. See MixInplaceFn.
        return x.copy_(mix_other(x, other, perm, lam, dim, namespace))
    if needs_autograd(x.requires_grad or other.requires_grad):
        return apply(MixOtherInplaceFn, x, other, perm, lam, dim, namespace)
    kernel(namespace, "mix_other_")(x, in_order(other, x, dim), perm, lam, dim)
    torch.autograd.graph.increment_version(x)  # another op may have saved x for its backward
    return x


class MixOtherFn(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        other: Tensor,
        perm: Tensor | None,
        lam: Tensor,
        dim: int,
        namespace: str,
    ) -> Tensor:
        needed = lam.requires_grad  # the batches are saved only for lam
        ctx.save_for_backward(x if needed else None, other if needed else None, perm, lam)
        ctx.layouts = _layout(x), _layout(other)
        ctx.call = dim, namespace
        return kernel(namespace, "mix_other")(x, in_order(other, x, dim), perm, lam, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, other, perm, lam = ctx.saved_tensors
        dim, namespace = ctx.call
        to_x, to_other, _, to_lam, *_ = ctx.needs_input_grad
        again = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if again or functorch_active() or batched(grad):
            return _reference_gradients(ctx, grad)
        grads: list[Tensor | None] = [None] * 6
        if to_x:
            grads[0] = _sum(grad, lam, None, ctx.layouts[0], dim, namespace)
        if to_other:
            grads[1] = _sum(grad, 1 - lam, perm, ctx.layouts[1], dim, namespace)
        if to_lam:
            partners = other
            if perm is not None:  # a bad index, whose row is NaN, must not read out of bounds here
                partners = other.index_select(dim, inside(perm, other.shape[dim])[0])
            grads[3] = lam_grad(grad, x, partners, lam, dim)
        return tuple(grads)


class MixOtherInplaceFn(Function):
    """Eager only, as MixInplaceFn."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        other: Tensor,
        perm: Tensor | None,
        lam: Tensor,
        dim: int,
        namespace: str,
    ) -> Tensor:
        ctx.mark_dirty(x)
        ctx.save_for_backward(None, None, perm, lam)
        ctx.layouts = _layout(x), _layout(other)
        ctx.call = dim, namespace
        kernel(namespace, "mix_other_")(x, in_order(other, x, dim), perm, lam, dim)
        return x

    backward = staticmethod(MixOtherFn.backward)


Layout = tuple[torch.Size, list[int]]  # shape and strides of a gradient


def _layout(x: Tensor) -> Layout:
    return x.shape, dense_strides(x)


def _sum(
    grad: Tensor, weight: Tensor, perm: Tensor | None, layout: Layout, dim: int, namespace: str
) -> Tensor:
    """The gradient to a batch: for each of its samples, the sum over the rows that have it."""
    shape, strides = layout
    out = torch.empty_strided(shape, strides, dtype=grad.dtype, device=grad.device)
    order = begin = None
    if perm is not None:
        # By sorting, not by atomics: deterministic, and no index out of range is in any group.
        index, order = perm.sort(stable=True)
        begin = torch.searchsorted(index, torch.arange(shape[dim] + 1, device=perm.device))
    kernel(namespace, "sum_rows_")(out, in_order(grad, out, dim), weight, order, begin, dim)
    return out


def _reference_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """In plain PyTorch: differentiable any number of times, under any transform."""
    x, other, perm, lam = ctx.saved_tensors
    dim, _ = ctx.call
    # The mix is linear in both batches: their values matter only for the gradient to lam.
    given = [
        grad.new_zeros(()).expand(shape) if t is None else t
        for t, (shape, _) in zip((x, other), ctx.layouts, strict=True)
    ] + [lam]
    wanted = [at for at, number in enumerate((0, 1, 3)) if ctx.needs_input_grad[number]]

    def mixed(*some: Tensor) -> Tensor:
        inputs = list(given)
        for at, t in zip(wanted, some, strict=True):
            inputs[at] = t
        return reference.mix(inputs[0], perm, inputs[2], other=inputs[1], dim=dim)

    found = torch.func.vjp(mixed, *(given[at] for at in wanted))[1](grad)
    grads: list[Tensor | None] = [None] * 6
    for at, t in zip(wanted, found, strict=True):
        grads[(0, 1, 3)[at]] = t
    return tuple(grads)
