"""Mixing, out of place and in place, and CutMix."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arithmetic import as_lam, compute_dtype
from ..tracing import copy_into, functorch_active, transformed
from .terms import Lam, blend, followed, inside, partner, per_row


def mix(
    x: Tensor, perm: Tensor | None, lam: Lam, *, other: Tensor | None = None, dim: int = 0
) -> Tensor:
    dim = dim % x.ndim
    dtype = compute_dtype(x.dtype)
    coef = per_row(as_lam(lam, dtype, x.device), x, dim)
    wide = x.to(dtype)  # cast once, so that the terms of a gradient are added before rounding
    theirs, bad = wide if other is None else other.to(dtype), None
    if perm is not None:
        index, bad = partner(perm) if other is None else inside(perm, other.shape[dim])
        theirs = theirs.index_select(dim, index)
    out = blend(coef, wide, theirs, followed(lam))
    if bad is not None:
        out = out.masked_fill(per_row(bad, x, dim), float("nan"))
    out = out.to(x.dtype)
    return torch.empty_like(x).copy_(out) if out.stride() != x.stride() else out


def mix_(
    x: Tensor, perm: Tensor | None, lam: Lam, *, other: Tensor | None = None, dim: int = 0
) -> Tensor:
    source = x.clone() if transformed() else x  # backward may need mix's input
    return copy_into(x, mix(source, perm, lam, other=other, dim=dim), "mix_")


def cutmix_(x: Tensor, perm: Tensor, box: Tensor, lam: Lam) -> Tensor:
    """mix_ inside each row's box only; box is (4,) or (B, 4): top, bottom, left, right.

    Where lam is 0, the bits are copied, in any dtype. Any other lam needs a floating dtype.
    """
    y = torch.arange(x.shape[-2], device=x.device).unsqueeze(1)
    column = torch.arange(x.shape[-1], device=x.device)
    edges = box.reshape(-1, 4, *[1] * (x.ndim - 1))
    top, bottom, left, right = (edges[:, k] for k in range(4))
    in_box = (top <= y) & (y < bottom) & (left <= column) & (column < right)
    before = x.clone() if functorch_active() else x  # under vmap, index_select saves its input
    inner = _partners(before, perm)
    if x.is_floating_point():
        weight = per_row(as_lam(lam, compute_dtype(x.dtype), x.device), x, 0)
        inner = torch.where(weight == 0, inner, mix(before, perm, lam))
    return copy_into(x, torch.where(in_box, inner, before), "cutmix_")


def _partners(x: Tensor, perm: Tensor) -> Tensor:
    """x[perm]; a row with a bad index is NaN if x is floating, else it stays as it is."""
    index, bad = partner(perm)
    bad = per_row(bad, x, 0)
    out = x.index_select(0, index)
    return out.masked_fill(bad, float("nan")) if x.is_floating_point() else torch.where(bad, x, out)
