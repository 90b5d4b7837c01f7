"""The mixed cross-entropy of a linear head, in chunks, under autograd."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from ..linear_chunks import factor_of
from ..ops import kernel
from ..reference.linear_cross_entropy import linear_cross_entropy_in
from ..tracing import batched, functorch_active, readable
from .apply import apply, needs_autograd

Head = tuple[Tensor, Tensor, Tensor | None]  # input, weight, bias


class LinearLossCall(NamedTuple):
    """The arguments of the op, except its tensors."""

    namespace: str
    dtype: torch.dtype  # of the logits
    chunk_size: int  # 0: the default
    options: tuple[Any, ...]  # from ignore_index on, in the order of the schema

    def run(
        self,
        head: Head,
        tensors: tuple[Tensor | None, ...],
        wanted: list[bool],
    ) -> tuple[Tensor, ...]:
        op = kernel(self.namespace, "linear_cross_entropy")
        return op(*head, self.dtype, self.chunk_size, wanted, *tensors, *self.options)

    def factor(self, rows: int) -> int:
        return factor_of(self.dtype, self.options[1], rows)

    def differentiable(
        self, grad: Tensor, head: Head, tensors: tuple[Any, ...], wanted: list[bool]
    ) -> list[Tensor | None]:
        """The gradients in plain PyTorch, with all logits at once: for double backward and vmap."""
        target, perm, target_b, lam, weight = tensors
        ignore_index, reduction, label_smoothing, z_loss, softcap = self.options

        def loss(*given: Tensor) -> Tensor:
            replaced = iter(given)
            x, w, b = (next(replaced) if wanted[i] else head[i] for i in range(3))
            assert x is not None and w is not None
            return linear_cross_entropy_in(
                self.dtype,
                x,
                w,
                target,
                perm,
                lam,
                linear_bias=b,
                target_b=target_b,
                weight=weight,
                ignore_index=ignore_index,
                reduction=reduction,
                label_smoothing=label_smoothing,
                z_loss=z_loss,
                softcap=softcap or None,
            )

        primals = [t for t, want in zip(head, wanted, strict=True) if want and t is not None]
        found = iter(torch.func.vjp(loss, *primals)[1](grad))
        return [next(found) if want else None for want in wanted]


def linear_loss(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tensors: tuple[Tensor | None, ...],
    call: Any,
) -> Tensor:
    """``tensors``: target, perm, target_b, lam, weight. ``call``: a LinearLossCall, or one that has
    its methods (distributed/linear.py)."""
    head = inputs, weight, bias
    if needs_autograd(any(t is not None and t.requires_grad for t in head)):
        return apply(LinearLossFn, *head, tensors, call)
    return call.run(head, tensors, [False] * 3)[0]


class LinearLossFn(Function):
    """The forward computes the gradients; the backward multiplies them by the upstream gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tensors: tuple[Tensor | None, ...],
        call: Any,
    ) -> Tensor:
        ctx.wanted = list(ctx.needs_input_grad[:3])
        loss, *gradients = call.run((inputs, weight, bias), tensors, ctx.wanted)
        ctx.call, ctx.rows = call, inputs.shape[0]
        ctx.dtypes = inputs.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.traced = torch.compiler.is_compiling()
        if ctx.traced:
            ctx.save_for_backward(*gradients)
        else:
            ctx.save_for_backward(inputs, weight, bias, *tensors)
            ctx.gradients = gradients
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        call, wanted = ctx.call, ctx.wanted
        if ctx.traced:
            gradients = ctx.saved_tensors
        elif functorch_active() or batched(grad) or torch.is_grad_enabled():
            return *call.differentiable(grad, *_saved(ctx), wanted), None, None
        else:
            # Given away only once: the caller may write to them. A second backward computes them
            # again. Only it unpacks the saved tensors, for which a checkpoint runs the forward.
            gradients, ctx.gradients = ctx.gradients, None
            if gradients is None:
                gradients = call.run(*_saved(ctx), wanted)[1:]
        factor = call.factor(ctx.rows)
        unit = factor == 1 and grad.is_cpu and readable(grad) and grad.item() == 1
        scale = None if unit else grad / factor
        return (
            *(
                _scaled(gradient, scale, dtype, ctx.traced) if want else None
                for gradient, dtype, want in zip(gradients, ctx.dtypes, wanted, strict=True)
            ),
            None,
            None,
        )


def _saved(ctx: Any) -> tuple[Head, tuple[Tensor | None, ...]]:
    inputs, weight, bias, *tensors = ctx.saved_tensors
    return (inputs, weight, bias), tuple(tensors)


def _scaled(gradient: Tensor, scale: Tensor | None, dtype: torch.dtype, traced: bool) -> Tensor:
    """``gradient * scale`` in ``dtype``, rounded once; overwrites the gradient if it can."""
    if scale is None:
        return gradient.to(dtype)
    if gradient.dtype == dtype == scale.dtype and not traced:
        return gradient.mul_(scale)
    # In the scale's dtype: float16 times a scale of 65536, itself rounded to float16, is inf.
    return (gradient.to(scale.dtype) * scale).to(dtype)
