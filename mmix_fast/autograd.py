"""Autograd for the kernels. A Function is told the torch.ops namespace; it knows no backend."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from . import reference
from .ops import kernel
from .tracing import batched, functionalized, functorch_active, readable, transformed


def needs_autograd(requires_grad: bool) -> bool:
    """Whether autograd must see the call: a Function costs 6 us, so only then."""
    return (requires_grad and torch.is_grad_enabled()) or torch.compiler.is_compiling()


def _record(function: type[Function], *args: Any) -> Any:
    """function.apply, where torch.func is not at work."""
    if torch.compiler.is_compiling():
        return function.apply(*args)
    # What Function.apply does before this is for torch.func alone, and takes 2 us.
    return super(Function, function).apply(*args)  # type: ignore[misc]


def _lam_grad(grad: Tensor, x: Tensor, perm: Tensor, lam: Tensor, dim: int) -> Tensor:
    """d/dlam of lam*x + (1-lam)*x[perm]: the inner product of grad with x - x[perm], per row."""
    acc = lam.dtype
    product = grad.to(acc) * (x.to(acc) - x.index_select(dim, perm).to(acc))
    return product.movedim(dim, 0).flatten(1).sum(1) if lam.ndim else product.sum()


class MixFn(Function):
    """out = mix(x); adjoint=True is the transpose, which is the backward of the other."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, perm: Tensor, lam: Tensor, dim: int, adjoint: bool, namespace: str
    ) -> Tensor:
        # The activation is kept only where lam wants its gradient.
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
            # <grad, M(x)> with M the mix; for the adjoint, <M(grad), x>: the roles swap.
            left, right = (x, grad) if adjoint else (grad, x)
            grad_lam = _lam_grad(left, right, perm, lam, dim)
        return grad_x, None, grad_lam, None, None, None


class MixTransformFn(Function):
    """MixFn for torch.func and forward-mode AD. They want setup_context, which costs 30 us."""

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
    """The derivative of a mix along lam: own - own[perm], or its transpose, of tangent*x."""
    if tangent.ndim:
        tangent = tangent.reshape([-1 if d == dim else 1 for d in range(x.ndim)])
    x = x.to(tangent.dtype)
    if adjoint:
        own = tangent * x
        return own - own.index_copy(dim, perm, own)
    return tangent * (x - x.index_select(dim, perm))


def mix(x: Tensor, perm: Tensor, lam: Tensor, dim: int, adjoint: bool, namespace: str) -> Tensor:
    if transformed():
        if not adjoint and functionalized():  # where a Function has no rule
            return reference.mix(x, perm, lam, dim=dim)
        return MixTransformFn.apply(x, perm, lam, dim, adjoint, namespace)
    if not needs_autograd(x.requires_grad or lam.requires_grad):
        return kernel(namespace, "mix")(x, perm, lam, dim, adjoint)
    return _record(MixFn, x, perm, lam, dim, adjoint, namespace)


def _mix_of_gradients(
    grad: Tensor, perm: Tensor, lam: Tensor, dim: int, adjoint: bool, namespace: str
) -> Tensor:
    if not batched(grad):
        return mix(grad, perm, lam, dim, adjoint, namespace)
    # That vmap loses the derivatives of a Function.
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
    """Not under a transform, which follows x.copy_(mix(x)) alone."""
    if torch.compiler.is_compiling():
        # AOTAutograd and inductor remove the copies.
        return x.copy_(mix(x, perm, lam, dim, False, namespace))
    if not needs_autograd(x.requires_grad or lam.requires_grad):
        kernel(namespace, "mix_")(x, perm, lam, dim)
        torch.autograd.graph.increment_version(x)  # x may be saved by an operation of other tensors
        return x
    return _record(MixInplaceFn, x, perm, lam, dim, namespace)


class MixBatchFn(Function):
    """mix_ of x and the soft targets, in one launch on a GPU. Eager only, as MixInplaceFn."""

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


class LossCall(NamedTuple):
    """A mixed cross-entropy but for its tensors."""

    options: tuple[Any, ...]  # the op's arguments after weight, in the order of its schema
    namespace: str
    inplace: bool  # the gradient takes the logits' storage


LossTensors = tuple[Tensor | None, ...]  # target, perm, target_b, lam, weight


def cross_entropy(logits: Tensor, tensors: LossTensors, call: LossCall) -> Tensor:
    """Not under a transform, which plain PyTorch serves."""
    if needs_autograd(logits.requires_grad):
        return _record(CrossEntropyFn, logits, tensors, call)
    return kernel(call.namespace, "cross_entropy")(logits, *tensors, *call.options, None)[0]


# The last upstream gradient of each kind of loss, and whether the one before was the same: a
# training loop gives the same again and again, be it 1, a share of accumulated batches or a loss
# scale. Known on the CPU alone.
_upstreams: dict[tuple[Any, ...], tuple[float, bool]] = {}


def _expected_upstream(kind: tuple[Any, ...]) -> float | None:
    """That for which the forward writes the gradient: the bytes of the logits then move twice.

    None after two different ones: without a gradient in the forward they move three times, with one
    that is written in vain four times.
    """
    last, repeated = _upstreams.get(kind, (1.0, True))
    return last if repeated else None


class CrossEntropyFn(Function):
    # One forward instead of setup_context, which costs 30 us a call. The tensors that get no
    # gradient come in a tuple: as arguments of their own they cost 2 us.
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tensors: LossTensors, call: LossCall) -> Tensor:
        reduction = call.options[1]
        kind = upstream = None
        # In place the gradient must wait: the logits are still in use.
        if not call.inplace and reduction != "none" and not torch.compiler.is_compiling():
            kind = logits.shape[1], logits.dtype, reduction, logits.is_cpu
            upstream = _expected_upstream(kind)
        loss, stats, gradient = kernel(call.namespace, "cross_entropy")(
            logits, *tensors, *call.options, upstream
        )
        ctx.save_for_backward(stats, logits, *tensors)
        written = upstream is not None and gradient.shape == logits.shape
        ctx.call, ctx.gradient = call, gradient if written else None
        ctx.kind, ctx.upstream = kind, upstream
        ctx.overwritten = False
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        # Handed over once: a second backward makes its own, since the caller may write to this one.
        gradient, ctx.gradient = ctx.gradient, None
        mapped = functorch_active() or batched(grad)
        again = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        ready = gradient is not None and not mapped and not again
        # Read on the CPU only, where no host waits.
        if ctx.kind is not None and not mapped and grad.is_cpu and readable(grad):
            upstream = grad.item()
            last, _ = _upstreams.get(ctx.kind, (1.0, True))
            _upstreams[ctx.kind] = upstream, upstream == last
            if ready and upstream == ctx.upstream:
                return gradient, None, None
        stats, logits, *tensors = ctx.saved_tensors
        if mapped:
            return _reference_gradient(grad, logits, tensors, ctx.call), None, None
        if ready and ctx.upstream == 1:
            kernel(ctx.call.namespace, "cross_entropy_rescale_")(
                gradient, grad.contiguous(), stats, logits, *tensors, *ctx.call.options
            )
            return gradient, None, None
        if ctx.call.inplace:
            if ctx.overwritten:  # logits that a saved-tensor hook keeps have no version to check
                raise RuntimeError(
                    "inplace_backward=True overwrites the logits and so allows one backward; "
                    "call mixed_cross_entropy with inplace_backward=False"
                )
            out = _gradient_inplace(grad, stats, logits, tensors, ctx.call)
            ctx.overwritten = True
            return out, None, None
        if again:
            return CrossEntropyGradFn.apply(grad, stats, logits, tensors, ctx.call), None, None
        return _gradient(grad, stats, logits, tensors, ctx.call), None, None


def _gradient(
    grad: Tensor, stats: Tensor, logits: Tensor, tensors: LossTensors, call: LossCall
) -> Tensor:
    return kernel(call.namespace, "cross_entropy_backward")(
        grad.contiguous(), stats, logits, *tensors, *call.options
    )


def _gradient_inplace(
    grad: Tensor, stats: Tensor, logits: Tensor, tensors: LossTensors, call: LossCall
) -> Tensor:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "inplace_backward=True overwrites the logits and so allows no double backward; "
            "call mixed_cross_entropy with inplace_backward=False"
        )
    out = logits.detach()  # shares storage and version counter
    kernel(call.namespace, "cross_entropy_backward_")(
        grad.contiguous(), stats, out, *tensors, *call.options
    )
    # Whoever saved the logits, a second backward included, must notice.
    torch.autograd.graph.increment_version(logits)
    return out


class CrossEntropyGradFn(Function):
    """The gradient as a function of (grad, logits): its own backward is the reference's."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, stats: Tensor, logits: Tensor, tensors: LossTensors, call: LossCall
    ) -> Tensor:
        ctx.save_for_backward(grad, logits, *tensors)
        ctx.call = call
        return _gradient(grad, stats, logits, tensors, call)

    @staticmethod
    def backward(ctx: Any, grad_grad: Tensor) -> tuple[Any, ...]:
        grad, logits, *tensors = ctx.saved_tensors
        pull = torch.func.vjp(
            lambda g, z: _reference_gradient(g, z, tensors, ctx.call), grad, logits
        )[1]
        grad_g, grad_z = pull(grad_grad)
        return grad_g, None, grad_z, None, None


def _reference_gradient(grad: Tensor, logits: Tensor, tensors: Any, call: LossCall) -> Tensor:
    """By plain PyTorch: differentiable any number of times, and under any transform."""
    target, perm, target_b, lam, weight = tensors
    ignore_index, reduction, label_smoothing, z_loss, softcap = call.options

    def loss(z: Tensor) -> Tensor:
        return reference.mixed_cross_entropy(
            z,
            target,
            perm,
            lam,
            target_b=target_b,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap or None,
        )

    (gradient,) = torch.func.vjp(loss, logits)[1](grad)
    return gradient
