"""Mixing, out of place and in place, and CutMix."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arithmetic import as_lam, compute_dtype
from ..tracing import copy_into, functorch_active, transformed
from .terms import Lam, blend, followed, partner, per_row


def mix(x: Tensor, perm: Tensor, lam: Lam, *, dim: int = 0) -> Tensor:
    dim = dim % x.ndim
    dtype = compute_dtype(x.dtype)
    index, bad = partner(perm)
    coef = per_row(as_lam(lam, dtype, x.device), x, dim)
    wide = x.to(dtype)  # cast once, so that the two gradient terms are added before rounding
    out = blend(coef, wide, wide.index_select(dim, index), followed(lam))
    out = out.masked_fill(per_row(bad, x, dim), float("nan")).to(x.dtype)
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
        weight = per_row(as_lam(lam, compute_dtype(x.dtype), x.device), x, 0)
        inner = torch.where(weight == 0, inner, mix(before, perm, lam))
    return copy_into(x, torch.where(inside, inner, before), "cutmix_")


def _partners(x: Tensor, perm: Tensor) -> Tensor:
    """x[perm]; a row with a bad index is NaN if x is floating, else it stays as it is."""
    index, bad = partner(perm)
    bad = per_row(bad, x, 0)
    out = x.index_select(0, index)
    return out.masked_fill(bad, float("nan")) if x.is_floating_point() else torch.where(bad, x, out)
