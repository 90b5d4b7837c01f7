"""The mixed losses under autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from .. import reference
from ..ops import kernel
from ..tracing import batched, functorch_active, readable
from .apply import apply, needs_autograd


class LossCall(NamedTuple):
    """The arguments of a mixed loss, except its tensors."""

    op: str  # "cross_entropy" or "binary_cross_entropy"
    reduction: str
    options: tuple[Any, ...]  # the op's arguments after the tensors, in the order of its schema
    namespace: str
    inplace: bool  # backward writes the gradient into the logits' storage

    def kernel(self, suffix: str = "") -> Any:
        return kernel(self.namespace, self.op + suffix)

    def upstream(self, grad: Tensor) -> Tensor:
        """The upstream gradient as the kernel takes it: one for each row is contiguous."""
        return grad if self.op == "binary_cross_entropy" else grad.contiguous()


# The op's tensors after the logits: target, perm, target_b, lam, weight, and scales or, binary,
# pos_weight.
LossTensors = tuple[Tensor | None, ...]


def mixed_loss(logits: Tensor, tensors: LossTensors, call: LossCall) -> Tensor:
    """Never called under torch.func or forward-mode AD: plain PyTorch serves those calls."""
    if needs_autograd(logits.requires_grad):
        return apply(LossFn, logits, tensors, call)
    return call.kernel()(logits, *tensors, *call.options, None)[0]


# For each kind of loss: the last upstream gradient, and whether the one before was equal. Training
# loops repeat one value, such as 1, 1/(accumulation steps) or a loss scale. Filled on the CPU only.
_upstreams: dict[tuple[Any, ...], tuple[float, bool]] = {}
_UNSEEN = 1.0, True  # most losses are what backward() is called on


def _expected_upstream(kind: tuple[Any, ...]) -> float | None:
    """The upstream gradient for which the forward computes the logits' gradient in advance.

    If the guess is right, the logits' bytes move twice; if it is wrong, four times; without a
    gradient in the forward, three times. So it is None after two different upstream gradients.
    """
    last, repeated = _upstreams.get(kind, _UNSEEN)
    return last if repeated else None


class LossFn(Function):
    # forward takes ctx, since a separate setup_context costs 30 us a call. The tensors that get no
    # gradient come in a tuple: as separate arguments they cost 2 us.
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tensors: LossTensors, call: LossCall) -> Tensor:
        kind = upstream = None
        # If inplace, backward must write the gradient: until then the logits are in use.
        if not call.inplace and call.reduction != "none" and not torch.compiler.is_compiling():
            kind = call.op, logits.shape[1], logits.dtype, call.reduction, logits.is_cpu
            upstream = _expected_upstream(kind)
        loss, *stats, gradient = call.kernel()(logits, *tensors, *call.options, upstream)
        ctx.save_for_backward(logits, *tensors, *stats)
        ctx.count = len(tensors)
        written = upstream is not None and gradient.shape == logits.shape
        ctx.call, ctx.gradient = call, gradient if written else None
        ctx.kind, ctx.upstream = kind, upstream
        ctx.overwritten = False
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        # Returned only once: the caller may write to it, so a second backward computes its own.
        gradient, ctx.gradient = ctx.gradient, None
        mapped = functorch_active() or batched(grad)
        again = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        ready = gradient is not None and not mapped and not again
        # Read on the CPU only; on a GPU the host would wait.
        if ctx.kind is not None and not mapped and grad.is_cpu and readable(grad):
            upstream = grad.item()
            last, _ = _upstreams.get(ctx.kind, _UNSEEN)
            _upstreams[ctx.kind] = upstream, upstream == last
            if ready and upstream == ctx.upstream:
                return gradient, None, None
        logits, tensors, stats = _saved(ctx)
        if mapped:
            return _reference_gradient(grad, logits, tensors, ctx.call), None, None
        if ready and ctx.upstream == 1:
            up = ctx.call.upstream(grad)
            ctx.call.kernel("_rescale_")(gradient, up, *stats, logits, *tensors, *ctx.call.options)
            return gradient, None, None
        if ctx.call.inplace:
            if ctx.overwritten:  # saved-tensor hooks bypass autograd's version check
                raise RuntimeError(
                    "inplace_backward=True overwrites the logits and so allows one backward; "
                    f"call mixed_{ctx.call.op} with inplace_backward=False"
                )
            out = _gradient_inplace(grad, stats, logits, tensors, ctx.call)
            ctx.overwritten = True
            return out, None, None
        if again:
            return LossGradFn.apply(grad, stats, logits, tensors, ctx.call), None, None
        return _gradient(grad, stats, logits, tensors, ctx.call), None, None


def _saved(ctx: Any) -> tuple[Tensor, LossTensors, tuple[Tensor, ...]]:
    """(logits, the other tensors, stats: none or one)."""
    logits, *others = ctx.saved_tensors
    return logits, tuple(others[: ctx.count]), tuple(others[ctx.count :])


def _gradient(
    grad: Tensor, stats: tuple[Tensor, ...], logits: Tensor, tensors: LossTensors, call: LossCall
) -> Tensor:
    return call.kernel("_backward")(call.upstream(grad), *stats, logits, *tensors, *call.options)


def _gradient_inplace(
    grad: Tensor, stats: tuple[Tensor, ...], logits: Tensor, tensors: LossTensors, call: LossCall
) -> Tensor:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "inplace_backward=True overwrites the logits and so allows no double backward; "
            f"call mixed_{call.op} with inplace_backward=False"
        )
    out = logits.detach()  # shares storage and version counter
    call.kernel("_backward_")(call.upstream(grad), *stats, out, *tensors, *call.options)
    # So that every later use of saved logits raises, also in a second backward.
    torch.autograd.graph.increment_version(logits)
    return out


class LossGradFn(Function):
    """The gradient as a function of (grad, logits); the reference computes its own backward."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        stats: tuple[Tensor, ...],
        logits: Tensor,
        tensors: LossTensors,
        call: LossCall,
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
    """The gradient in plain PyTorch: differentiable any number of times, under any transform."""
    plainly = _PLAIN[call.op]
    (gradient,) = torch.func.vjp(lambda z: plainly(z, *tensors, *call.options), logits)[1](grad)
    return gradient


def _plain_cross_entropy(
    logits: Tensor,
    target: Tensor,
    perm: Tensor | None,
    target_b: Tensor | None,
    lam: Tensor,
    weight: Tensor | None,
    scales: None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    class_offset: int,
    num_classes: int,
) -> Tensor:
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
        softcap=softcap or None,
    )


def _plain_binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    perm: Tensor | None,
    target_b: Tensor | None,
    lam: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
    label_smoothing: float,
    target_threshold: float | None,
) -> Tensor:
    return reference.mixed_binary_cross_entropy(
        logits,
        target,
        perm,
        lam,
        target_b=target_b,
        weight=weight,
        pos_weight=pos_weight,
        reduction=reduction,
        label_smoothing=label_smoothing,
        target_threshold=target_threshold,
    )


# The ops in plain PyTorch, with the arguments of their schemas.
_PLAIN: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": _plain_cross_entropy,
    "binary_cross_entropy": _plain_binary_cross_entropy,
}
