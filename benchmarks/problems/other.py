"""Mixing with a second batch in place (MixMatch, UniMatch), against PyTorch's lerp_ and add_."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import mmix_fast

from ..problem import OURS, Goal, Implementation, Maker, Problem, by_threads, compiled
from .common import MIX_TOLERANCES

SHAPES = ((128, 64, 32, 32), (256, 4096))
OVER_100_MB = (256, 128, 32, 32)


def lerp_(x: Tensor, other: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    return x.lerp_(other[perm], (1 - lam).to(x.dtype))


def eager(x: Tensor, other: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    return lam * x + (1 - lam) * other[perm]


def forward(shape: tuple[int, ...], dtype: torch.dtype, device: str, compiler=compiled) -> Problem:
    x, other = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    perm, lam = torch.randperm(len(x), device=device), torch.tensor(0.3, device=device)
    fast = compiler(eager)
    expected = eager(x.float(), other.float(), perm, lam).to(dtype)
    implementations = {
        OURS: Implementation(lambda x: mmix_fast.mix_(x, perm, lam, other=other), expected),
        "lerp_": Implementation(lambda x: lerp_(x, other, perm, lam), expected, *MIX_TOLERANCES),
        "eager": Implementation(lambda x: eager(x, other, perm, lam), expected, *MIX_TOLERANCES),
        "compiled": Implementation(
            lambda x: fast(x, other, perm, lam), expected, *MIX_TOLERANCES, compiled=True
        ),
        # A lower limit: the same bytes, with other in the order of memory.
        "add_": Implementation(lambda x: x.add_(other, alpha=0.3)),
    }
    goals = (Goal("lerp_", 1 / 3),)
    moved = 3 * x.nbytes
    return Problem("mix_ with other", shape, dtype, x.clone, implementations, moved, goals)


def over_100_mb(dtype: torch.dtype, device: str) -> Problem:
    batch = OVER_100_MB[0] * 4 // dtype.itemsize
    shape = (batch, *OVER_100_MB[1:])
    x, other = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    perm, lam = torch.randperm(batch, device=device), torch.tensor(0.3, device=device)
    expected = eager(x.float(), other.float(), perm, lam).to(dtype)
    implementations = {
        OURS: Implementation(lambda x: mmix_fast.mix_(x, perm, lam, other=other), expected),
        "add_": Implementation(lambda x: x.add_(other, alpha=0.3)),
    }
    op, goals = "mix_ with other over 100 MB", (Goal("add_", 1.1),)
    return Problem(op, shape, dtype, x.clone, implementations, 3 * x.nbytes, goals)


def makers(dtypes: tuple[torch.dtype, ...], device: str, quick: bool) -> list[Maker]:
    shapes = SHAPES[1:] if quick else SHAPES
    found: list[Maker] = [partial(forward, s, dtype, device) for dtype in dtypes for s in shapes]
    if not quick:
        found += [partial(over_100_mb, dtype, device) for dtype in dtypes]
    return by_threads(found, device)
