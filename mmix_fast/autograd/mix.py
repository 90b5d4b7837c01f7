"""Mixing under autograd, torch.func and forward-mode AD."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import reference
from ..ops import kernel
from ..tracing import batched, copy_into, functionalized, transformed
from .apply import apply, needs_autograd


def lam_grad(grad: Tensor, x: Tensor, partners: Tensor, lam: Tensor, dim: int) -> Tensor:
    """d/dlam of lam*x + (1-lam)*partners: the inner product of grad with their difference."""
    acc = lam.dtype
    product = grad.to(acc) * (x.to(acc) - partners.to(acc))
    if not lam.ndim:
        return product.sum()
    return product.movedim(dim, 0).unsqueeze(-1).flatten(1).sum(1)  # also of samples without dims


class MixFn(Function):
    """out = mix(x). adjoint=True is the transposed map; each of the two is the other's backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, perm: Tensor, lam: Tensor, dim: int, adjoint: bool, namespace: str
    ) -> Tensor:
        # x is saved only if lam needs a gradient.
        ctx.save_for_backward(x if lam.requires_grad else None, perm, lam)
        ctx.call = dim, adjoint, namespace
        return kernel(namespace, "mix")(x, perm, lam, dim, adjoint)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, perm, lam = ctx.saved_tensors
        dim, adjoint, namespace = ctx.call
        grad_x = grad_lam = None
        if ctx.needs_input_grad[0]:
            grad_x = _mix_of_gradients(grad, perm, lam, dim, not adjoint, namespace)
        if ctx.needs_input_grad[2]:
            # The derivative of <grad, M(x)>, where M is the mix. For the adjoint it is
            # <M(grad), x>, so grad and x swap roles.
            left, right = (x, grad) if adjoint else (grad, x)
            grad_lam = lam_grad(left, right, right.index_select(dim, perm), lam, dim)
        return grad_x, None, grad_lam, None, None, None


class MixTransformFn(Function):
    """MixFn for torch.func and forward-mode AD. They need setup_context, which costs 30 us."""

    @staticmethod
    def forward(
        x: Tensor, perm: Tensor, lam: Tensor, dim: int, adjoint: bool, namespace: str
    ) -> Tensor:
        return kernel(namespace, "mix")(x, perm, lam, dim, adjoint)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, perm, lam, *call = inputs
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, perm, lam)
        ctx.save_for_forward(x, perm, lam)
        ctx.call = call

    backward = staticmethod(MixFn.backward)

    @staticmethod
    def jvp(ctx: Any, x_tangent: Any, _: Any, lam_tangent: Any, *options: Any) -> Tensor:
        x, perm, lam = ctx.saved_tensors
        dim, adjoint, namespace = ctx.call
        parts = []
        if x_tangent is not None:
            parts.append(mix(x_tangent, perm, lam, dim, adjoint, namespace))
        if lam_tangent is not None:
            parts.append(_lam_tangent(x, perm, lam_tangent, dim, adjoint).to(x.dtype))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, perm: Tensor, lam: Tensor, *call: Any
    ) -> tuple[Tensor, int]:
        dim, adjoint, namespace = call
        x_dim, perm_dim, lam_dim, *_ = in_dims
        if x_dim is not None and perm_dim is None and lam_dim is None:
            return mix(x.movedim(x_dim, 0), perm, lam, dim + 1, adjoint, namespace), 0
        one_by_one = []
        for k in range(info.batch_size):
            mapped = ((x, x_dim), (perm, perm_dim), (lam, lam_dim))
            x_k, perm_k, lam_k = (t if d is None else t.select(d, k) for t, d in mapped)
            one_by_one.append(mix(x_k, perm_k.contiguous(), lam_k, dim, adjoint, namespace))
        return torch.stack(one_by_one), 0


def _lam_tangent(x: Tensor, perm: Tensor, tangent: Tensor, dim: int, adjoint: bool) -> Tensor:
    """The jvp of a mix with respect to lam: tangent*(x - x[perm]), or the adjoint's jvp."""
    if tangent.ndim:
        tangent = tangent.reshape([-1 if d == dim else 1 for d in range(x.ndim)])
    x = x.to(tangent.dtype)
    if adjoint:
        own = tangent * x
        return own - own.index_copy(dim, perm, own)
    return tangent * (x - x.index_select(dim, perm))


def mix(x: Tensor, perm: Tensor, lam: Tensor, dim: int, adjoint: bool, namespace: str) -> Tensor:
    if transformed():
        if not adjoint and functionalized():  # a Function has no rule for it
            return reference.mix(x, perm, lam, dim=dim)
        return MixTransformFn.apply(x, perm, lam, dim, adjoint, namespace)
    if not needs_autograd(x.requires_grad or lam.requires_grad):
        return kernel(namespace, "mix")(x, perm, lam, dim, adjoint)
    return apply(MixFn, x, perm, lam, dim, adjoint, namespace)


def _mix_of_gradients(
    grad: Tensor, perm: Tensor, lam: Tensor, dim: int, adjoint: bool, namespace: str
) -> Tensor:
    if not batched(grad):
        return mix(grad, perm, lam, dim, adjoint, namespace)
    # The legacy vmap drops the derivatives of a Function, so plain PyTorch runs here.
    plainly = functools.partial(reference.mix, perm=perm, lam=lam, dim=dim)
    return torch.func.vjp(plainly, grad)[1](grad)[0] if adjoint else plainly(grad)


class MixInplaceFn(Function):
    """Eager only: mark_dirty on a mutated graph input compiles to wrong gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, perm: Tensor, lam: Tensor, dim: int, namespace: str) -> Tensor:
        ctx.mark_dirty(x)
        ctx.save_for_backward(perm, lam)
        ctx.call = dim, namespace
        kernel(namespace, "mix_")(x, perm, lam, dim)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        perm, lam = ctx.saved_tensors
        dim, namespace = ctx.call
        grad_x = _mix_of_gradients(grad, perm, lam, dim, True, namespace)
        return grad_x, None, None, None, None


def mix_inplace(x: Tensor, perm: Tensor, lam: Tensor, dim: int, namespace: str) -> Tensor:
    if transformed():
        # A copy of x, since backward may need mix's input.
        return copy_into(x, mix(x.clone(), perm, lam, dim, False, namespace), "mix_")
    if torch.compiler.is_compiling():
        # AOTAutograd and inductor remove the copies.
        return x.copy_(mix(x, perm, lam, dim, False, namespace))
    if not needs_autograd(x.requires_grad or lam.requires_grad):
        kernel(namespace, "mix_")(x, perm, lam, dim)
        torch.autograd.graph.increment_version(x)  # another op may have saved x for its backward
        return x
    return apply(MixInplaceFn, x, perm, lam, dim, namespace)


class MixBatchFn(Function):
    """mix_ of x plus soft targets, usually one launch on a GPU. Eager only, like MixInplaceFn."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, perm: Tensor, lam: Tensor, targets: tuple[Any, ...], namespace: str
    ) -> tuple[Tensor, Tensor]:
        ctx.mark_dirty(x)
        ctx.save_for_backward(perm, lam)
        ctx.call = 0, namespace
        target, *options = targets
        soft = kernel(namespace, "mix_batch_")(x, target, perm, lam, *options)
        ctx.mark_non_differentiable(soft)
        return x, soft

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        return MixInplaceFn.backward(ctx, grad)
