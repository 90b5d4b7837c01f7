"""What all ops share: partners, coefficients, and sums without the terms whose coefficient is 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from ..tracing import transformed

Lam = float | Tensor


def partner(perm: Tensor) -> tuple[Tensor, Tensor]:
    """(perm clamped to the batch, True for rows whose entry is out of range or used twice)."""
    safe, bad = inside(perm, perm.shape[0])
    uses = torch.zeros_like(perm).scatter_add(0, safe, torch.ones_like(perm))
    return safe, bad | (uses.gather(0, safe) != 1)


def inside(index: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(index clamped to 0..n-1, True where it is out of this range)."""
    return index.clamp(0, max(n - 1, 0)), (index < 0) | (index >= n)


def partners(target: Tensor, perm: Tensor | None, target_b: Tensor | None) -> Tensor:
    """The partners' targets: target_b, or target[perm]. A bad index reads another row."""
    if perm is not None:
        return target.index_select(0, inside(perm, perm.shape[0])[0])
    assert target_b is not None  # one of perm and target_b is given
    return target_b


def per_row(lam: Tensor, like: Tensor, dim: int) -> Tensor:
    """Reshapes lam, () or (B,), so that it broadcasts along ``dim`` of ``like``."""
    if lam.ndim == 0:
        return lam
    return lam.reshape([-1 if d == dim else 1 for d in range(like.ndim)])


def followed(lam: Lam) -> bool:
    """True if autograd or a transform may need a derivative with respect to lam.

    Call it on the caller's lam: inside a transform, any tensor computed from lam is wrapped. When
    compiling, it is True for every tensor, since the compiler removes an unused gradient.
    """
    if not isinstance(lam, Tensor) or torch.compiler.is_compiling():
        return isinstance(lam, Tensor)
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(lam)
    return lam.requires_grad or wrapped or forward_ad.unpack_dual(lam).tangent is not None


def scale(coef: Tensor, value: Tensor, followed: bool) -> Tensor:
    """``coef*value``, but -0.0 where coef is exactly 0: adding -0.0 keeps the other side's bits.

    The gradient to value follows the same rule, so no inf or NaN passes a coefficient of 0. The
    gradient to coef, if ``followed``, is that of the product, also where coef is 0.
    """
    if not followed:
        return torch.where(coef == 0, -0.0, coef * value)
    if transformed():
        # Nested forward mode drops terms of a Function. This form is right for finite values.
        return coef * torch.where((coef == 0) & ~value.isfinite(), 0, value)
    return _Scale.apply(coef, value)


class _Scale(Function):
    """scale for a coef that needs a gradient: torch.where would zero it where coef is 0."""

    @staticmethod
    def forward(ctx: Any, coef: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(coef, value)
        return torch.where(coef == 0, -0.0, coef * value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        coef, value = ctx.saved_tensors
        to_coef = (grad * value).sum_to_size(coef.shape) if ctx.needs_input_grad[0] else None
        return to_coef, scale(coef, grad, True) if ctx.needs_input_grad[1] else None


def blend(lam: Tensor, own: Tensor, other: Tensor, followed: bool) -> Tensor:
    """``lam*own + (1-lam)*other``; a side whose coefficient is exactly 0 is left out."""
    return scale(lam, own, followed) + scale(1 - lam, other, followed)


def as_rows(t: Tensor) -> Tensor:
    """(B, C, d1, ...) -> (B*d1*..., C)."""
    return t.movedim(1, -1).flatten(0, -2)  # not reshape(-1, C): C may be 0


def term(coef: Tensor, value: Tensor) -> Tensor:
    """``coef*value``, but 0 where coef is exactly 0 and value is not finite."""
    return coef * torch.where((coef == 0) & ~value.isfinite(), 0, value)
