"""Time against B, D and C, from tiny to large: where the curves cross, and what a call costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch

from ..problem import OURS, Maker, Problem, compiled
from . import cross_entropy, mix

# (op, size that varies, its largest exponent of 2, shape for that size)
SWEEPS = (
    ("mix_", "B", 13, lambda n: (n, 1024)),
    ("mix_", "D", 18, lambda n: (64, n)),
    ("loss", "B", 12, lambda n: (n, 1000)),
    ("loss", "C", 17, lambda n: (128, n)),
)
STEP, QUICK_STEP = 2, 5  # between exponents
SHOWN = (OURS, "eager", "two terms", "compiled", "mul_")


@cache
def dynamic(function: Callable) -> Callable:
    """Compiled once for all sizes, as for a user whose shapes vary."""
    return compiled(function, dynamic=True)


def point(op: str, varies: str, shape: tuple[int, int], dtype: torch.dtype, device: str) -> Problem:
    if op == "mix_":
        problem = mix.forward(shape, dtype, device, dynamic)
    else:
        problem = cross_entropy.loss(shape, dtype, device, False, dynamic)
    kept = {
        name: implementation
        for name, implementation in problem.implementations.items()
        if name in SHOWN
    }
    name = f"{op} over {varies}"
    return replace(problem, op=name, implementations=kept, goals=(), cold=False, sweep=varies)


def makers(dtypes: tuple[torch.dtype, ...], device: str, quick: bool) -> list[Maker]:
    step = QUICK_STEP if quick else STEP
    return [
        partial(point, op, varies, shape(2**k), dtype, device)
        for dtype in dtypes
        for op, varies, last, shape in SWEEPS
        for k in range(1, last + 1, step)
    ]
