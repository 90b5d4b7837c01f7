"""Every op in plain PyTorch: the fallback on any device, and the executable form of the contract.

Nothing is fused, and only the final write is in place: clarity and correctness (checked in float64)
come first. :mod:`mmix_fast.functional` has already validated the arguments; its docstrings describe
them. A row whose index is out of range becomes NaN instead of reading out of bounds, since on a GPU
and in compiled graphs nothing may be checked on the host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .arithmetic import as_lam, compute_dtype
from .tracing import copy_into, functorch_active, transformed

Lam = float | Tensor


def _partner(perm: Tensor) -> tuple[Tensor, Tensor]:
    """(perm clamped to the batch, True for rows whose entry is out of range or used twice)."""
    n = perm.shape[0]
    bad = (perm < 0) | (perm >= n)
    safe = perm.clamp(0, max(n - 1, 0))
    uses = torch.zeros_like(perm).scatter_add(0, safe, torch.ones_like(perm))
    return safe, bad | (uses.gather(0, safe) != 1)


def _per_row(lam: Tensor, like: Tensor, dim: int) -> Tensor:
    """Reshapes lam, () or (B,), so that it broadcasts along ``dim`` of ``like``."""
    if lam.ndim == 0:
        return lam
    return lam.reshape([-1 if d == dim else 1 for d in range(like.ndim)])


def _followed(lam: Lam) -> bool:
    """True if autograd or a transform may need a derivative with respect to lam.

    Call it on the caller's lam: inside a transform, any tensor computed from lam is wrapped. When
    compiling, it is True for every tensor, since the compiler removes an unused gradient.
    """
    if not isinstance(lam, Tensor) or torch.compiler.is_compiling():
        return isinstance(lam, Tensor)
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(lam)
    return lam.requires_grad or wrapped or forward_ad.unpack_dual(lam).tangent is not None


def _scale(coef: Tensor, value: Tensor, followed: bool) -> Tensor:
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
    """_scale for a coef that needs a gradient: torch.where would zero it where coef is 0."""

    @staticmethod
    def forward(ctx: Any, coef: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(coef, value)
        return torch.where(coef == 0, -0.0, coef * value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        coef, value = ctx.saved_tensors
        to_coef = (grad * value).sum_to_size(coef.shape) if ctx.needs_input_grad[0] else None
        return to_coef, _scale(coef, grad, True) if ctx.needs_input_grad[1] else None


def _blend(lam: Tensor, own: Tensor, other: Tensor, followed: bool) -> Tensor:
    """``lam*own + (1-lam)*other``; a side whose coefficient is exactly 0 is left out."""
    return _scale(lam, own, followed) + _scale(1 - lam, other, followed)


def mix(x: Tensor, perm: Tensor, lam: Lam, *, dim: int = 0) -> Tensor:
    dim = dim % x.ndim
    dtype = compute_dtype(x.dtype)
    index, bad = _partner(perm)
    coef = _per_row(as_lam(lam, dtype, x.device), x, dim)
    wide = x.to(dtype)  # cast once, so that the two gradient terms are added before rounding
    out = _blend(coef, wide, wide.index_select(dim, index), _followed(lam))
    out = out.masked_fill(_per_row(bad, x, dim), float("nan")).to(x.dtype)
    return torch.empty_like(x).copy_(out) if out.stride() != x.stride() else out


def mix_(x: Tensor, perm: Tensor, lam: Lam, *, dim: int = 0) -> Tensor:
    source = x.clone() if transformed() else x  # backward may need mix's input
    return copy_into(x, mix(source, perm, lam, dim=dim), "mix_")


def cutmix_(x: Tensor, perm: Tensor, box: Tensor, lam: Lam) -> Tensor:
    """mix_ inside each row's box only; box is (4,) or (B, 4): top, bottom, left, right.

    Where lam is 0, the bits are copied, in any dtype. Any other lam needs a floating dtype.
    """
    y = torch.arange(x.shape[-2], device=x.device).unsqueeze(1)
    column = torch.arange(x.shape[-1], device=x.device)
    edges = box.reshape(-1, 4, *[1] * (x.ndim - 1))
    top, bottom, left, right = (edges[:, k] for k in range(4))
    inside = (top <= y) & (y < bottom) & (left <= column) & (column < right)
    before = x.clone() if functorch_active() else x  # under vmap, index_select saves its input
    inner = _partners(before, perm)
    if x.is_floating_point():
        weight = _per_row(as_lam(lam, compute_dtype(x.dtype), x.device), x, 0)
        inner = torch.where(weight == 0, inner, mix(before, perm, lam))
    return copy_into(x, torch.where(inside, inner, before), "cutmix_")


def _partners(x: Tensor, perm: Tensor) -> Tensor:
    """x[perm]; a row with a bad index is NaN if x is floating, else the clamped index's row."""
    index, bad = _partner(perm)
    out = x.index_select(0, index)
    return out.masked_fill(_per_row(bad, x, 0), float("nan")) if x.is_floating_point() else out


def _soft(
    target: Tensor, classes: int, eps: float, ignore_index: int, dtype: torch.dtype
) -> Tensor:
    """q(y) of shape (B, C, ...): zero where ignored, NaN where the label is out of range."""
    valid = target != ignore_index
    bad = valid & ((target < 0) | (target >= classes))
    hot = torch.arange(classes, device=target.device).reshape(-1, *[1] * (target.ndim - 1))
    onehot = (hot == target.unsqueeze(1)).to(dtype)
    q = ((1 - eps) * onehot + eps / classes) * valid.unsqueeze(1)
    return q.masked_fill(bad.unsqueeze(1), float("nan"))


def mix_targets(
    target: Tensor,
    perm: Tensor,
    lam: Lam,
    *,
    num_classes: int | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    acc = compute_dtype(target.dtype, dtype)
    if target.is_floating_point():
        q = (1 - label_smoothing) * target.to(acc) + label_smoothing / target.shape[1]
    else:
        assert num_classes is not None  # mmix_fast.functional raises otherwise
        q = _soft(target, num_classes, label_smoothing, ignore_index, acc)
    index, bad = _partner(perm)
    coef = _per_row(as_lam(lam, acc, target.device), q, 0)
    out = _blend(coef, q, q.index_select(0, index), _followed(lam))
    return out.masked_fill(_per_row(bad, q, 0), float("nan")).to(dtype)


def mix_batch_(
    x: Tensor,
    target: Tensor,
    perm: Tensor,
    lam: Lam,
    *,
    num_classes: int | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    soft = mix_targets(
        target,
        perm,
        lam,
        num_classes=num_classes,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        dtype=dtype,
    )
    return mix_(x, perm, lam), soft


def _rows(t: Tensor) -> Tensor:
    """(B, C, d1, ...) -> (B*d1*..., C)."""
    return t.movedim(1, -1).reshape(-1, t.shape[1])


def _term(coef: Tensor, value: Tensor) -> Tensor:
    """``coef*value``, but 0 where coef is exactly 0 and value is not finite."""
    return coef * torch.where((coef == 0) & ~value.isfinite(), 0, value)


def _row_losses(logp: Tensor, q: Tensor) -> Tensor:
    # A probability of exactly 0 contributes 0; at logp = -inf, 0 * -inf would be NaN.
    return -torch.where(q == 0, 0, q * torch.where(q == 0, 0, logp)).sum(-1)


def _mean(rows: Tensor, total: Tensor) -> Tensor:
    """``rows.sum()/total``, but NaN if total is 0, as in PyTorch.

    The gradient to rows is 0 then, not NaN, so that none leaks into rows without this term.
    """
    zero = total == 0
    return torch.where(zero, float("nan"), rows.sum() / torch.where(zero, 1, total))


def mixed_cross_entropy(
    logits: Tensor,
    target: Tensor,
    perm: Tensor | None,
    lam: Lam,
    *,
    target_b: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    inplace_backward: bool = False,
) -> Tensor:
    acc = compute_dtype(logits.dtype)
    classes, shape = logits.shape[1], logits.shape[:1] + logits.shape[2:]
    lam_t = as_lam(lam, acc, logits.device)
    own = _per_row(lam_t, torch.empty(shape, device="meta"), 0).expand(shape).reshape(-1)
    other = 1 - own
    bad = torch.zeros(shape, dtype=torch.bool, device=logits.device)
    if target.is_floating_point():  # cast before pairing, so that its gradient is rounded once
        target, target_b = target.to(acc), None if target_b is None else target_b.to(acc)
    if perm is not None:
        index, bad_perm = _partner(perm)
        target_b = target.index_select(0, index)
        bad = bad | _per_row(bad_perm, bad, 0)
    assert target_b is not None  # mmix_fast.functional raises otherwise
    bad = bad.reshape(-1)
    w = torch.ones(classes, dtype=acc, device=logits.device) if weight is None else weight.to(acc)

    if target.is_floating_point():
        t = _blend(own.unsqueeze(1), _rows(target), _rows(target_b), _followed(lam))
        # Smoothing is affine and lam + (1-lam) = 1, so smoothing the mix equals mixing the
        # smoothed targets.
        q_own = w * ((1 - label_smoothing) * t + label_smoothing / classes)
        q_other = torch.zeros_like(q_own)
        valid = other_valid = torch.ones_like(bad)
        totals = (own.new_tensor(own.shape[0]),) * 2
        own_loss, other_loss = torch.ones_like(own), torch.zeros_like(own)
    else:
        labels = target.reshape(-1), target_b.reshape(-1)
        valid, other_valid = (y != ignore_index for y in labels)
        safe = [y.clamp(0, classes - 1) for y in labels]
        hard_own, hard_other = w[safe[0]] * valid, w[safe[1]] * other_valid
        if lam_t.ndim:
            totals = ((_term(own, hard_own) + _term(other, hard_other)).sum(),) * 2
        else:
            totals = hard_own.sum(), hard_other.sum()
        qs = []
        class_numbers = torch.arange(classes, device=target.device)
        terms = zip(labels, safe, (valid, other_valid), (own, other), totals, strict=True)
        for y, inside, mask, coef, total in terms:
            bad = bad | (mask & ((y < 0) | (y >= classes)))
            count = mask.to(acc)
            if reduction == "mean":  # a term over nothing has a gradient of NaN, as in PyTorch
                count = torch.where(mask & (coef != 0) & (total == 0), float("nan"), count)
            # Not one_hot: it reads values on the host, which tracers do not allow.
            q = (class_numbers == inside.unsqueeze(1)) * (w[inside] * count).unsqueeze(1)
            q = (1 - label_smoothing) * q + label_smoothing / classes * w * count.unsqueeze(1)
            qs.append(q)
        q_own, q_other = qs
        own_loss, other_loss = own, other

    # A row with no label to count has zero gradient, whatever its logits hold. Its logits are
    # replaced by 0 here, since softmax's backward would give NaN for NaN logits.
    live = (valid & (own != 0)) | (other_valid & (other != 0))
    z = torch.where(live.unsqueeze(1), _rows(logits).to(acc), 0)
    if softcap is not None:
        # A masked class (-inf) stays masked.
        capped = softcap * torch.tanh(torch.where(z.isneginf(), 0, z) / softcap)
        z = torch.where(z.isneginf(), z, capped)
    logp = z.log_softmax(-1)
    a, b = _row_losses(logp, q_own), _row_losses(logp, q_other)
    a = a.masked_fill(bad, float("nan"))
    if z_loss:
        count = own * valid + other * other_valid
        extra = _term(count * z_loss, z.logsumexp(-1).square())

    if reduction == "mean" and not lam_t.ndim and not target.is_floating_point():
        loss = _term(lam_t, _mean(a, totals[0])) + _term(1 - lam_t, _mean(b, totals[1]))
    else:
        loss = _term(own_loss, a) + _term(other_loss, b)
        if reduction != "none":
            loss = _mean(loss, totals[0]) if reduction == "mean" else loss.sum()
    if z_loss:
        if reduction == "none":
            loss = loss + extra
        else:
            loss = loss + (extra.sum() / count.sum() if reduction == "mean" else extra.sum())
    return loss.reshape(shape) if reduction == "none" else loss
