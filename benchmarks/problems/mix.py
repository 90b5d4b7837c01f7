"""Mixing, forward and backward, against the ways to write it in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import mmix_fast

from ..problem import OURS, Goal, Implementation, Maker, Op, Problem, compiled, makers_for
from . import cutmix, other
from .common import MIX_TOLERANCES, SMALL, eager_mix, small_call

SHAPES = {
    "cpu": ((128, 64, 32, 32), (128, 256, 14, 14), (256, 4096), (1024, 1024)),
    "cuda": ((64, 256, 56, 56), (256, 4096), (1024, 16384), (8, 512, 4096), (4096, 1023)),
}
QUICK_SHAPES = ((128, 256, 14, 14), (256, 4096))
PAGE_FAULT_SHAPE = SHAPES["cpu"][0]  # here page faults of fresh 33 MB buffers dominate a backward
OVER_100_MB = (256, 128, 32, 32)


def lerp(x: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    return torch.lerp(x[perm], x, lam.to(x.dtype))


def timm_style_(x: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    other = x[perm].mul_(1 - lam)
    return x.mul_(lam).add_(other)


def roll(x: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    """As torchvision does: the partner is always the previous sample, so no gather is needed."""
    return x.roll(1, 0).mul_(1 - lam).add_(x.mul(lam))


def make_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(shape, device=device).to(dtype)
    return x, torch.randperm(shape[0], device=device), torch.tensor(0.3, device=device)


def rolled_perm(perm: Tensor) -> Tensor:
    return torch.arange(len(perm), device=perm.device).roll(1)


def forward(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    compiler=compiled,
    op: Callable[..., Tensor] = mmix_fast.mix_,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Problem:
    x, perm, lam = make_inputs(shape, dtype, device)
    x = x.to(memory_format=memory_format)
    fast = compiler(eager_mix)
    expected = eager_mix(x.float(), perm, lam).to(dtype)
    rolled = eager_mix(x.float(), rolled_perm(perm), lam).to(dtype)
    implementations = {
        OURS: Implementation(lambda x: op(x, perm, lam), expected),
        "eager": Implementation(lambda x: eager_mix(x, perm, lam), expected, *MIX_TOLERANCES),
        "timm in place": Implementation(
            lambda x: timm_style_(x, perm, lam), expected, *MIX_TOLERANCES
        ),
        "torchvision roll": Implementation(lambda x: roll(x, perm, lam), rolled, *MIX_TOLERANCES),
        "lerp": Implementation(lambda x: lerp(x, perm, lam), expected, *MIX_TOLERANCES),
        "compiled": Implementation(
            lambda x: fast(x, perm, lam), expected, *MIX_TOLERANCES, compiled=True
        ),
        # The lower limit of any pass in place.
        "mul_": Implementation(lambda x: x.mul_(1.0)),
    }
    goals = (Goal("eager", 1 / 10), Goal("timm in place", 1 / 3), Goal("compiled", 1 / 1.5))
    asked = goals if shape in SHAPES["cpu"] else ()
    name = f"{op.__name__} forward"
    return Problem(name, shape, dtype, x.clone, implementations, 2 * x.nbytes, asked)


def train(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Problem:
    x, perm, lam = make_inputs(shape, dtype, device)
    upstream = torch.randn(shape, device=device).to(dtype)

    def gradient(op, perm: Tensor = perm) -> Op:
        return lambda x: torch.autograd.grad(op(x, perm, lam), x, upstream)[0]

    def fresh() -> Tensor:
        return x.clone().requires_grad_()

    exact = x.float().requires_grad_()
    expected, rolled = (
        torch.autograd.grad(eager_mix(exact, p, lam), exact, upstream.float())[0].to(dtype)
        for p in (perm, rolled_perm(perm))
    )
    implementations = {
        OURS: Implementation(gradient(mmix_fast.mix), expected, *MIX_TOLERANCES),
        "eager": Implementation(gradient(eager_mix), expected, *MIX_TOLERANCES),
        "torchvision roll": Implementation(gradient(roll), rolled, *MIX_TOLERANCES),
        "lerp": Implementation(gradient(lerp), expected, *MIX_TOLERANCES),
        "compiled": Implementation(
            gradient(compiled(eager_mix)), expected, *MIX_TOLERANCES, compiled=True
        ),
        # A lower limit: two new results, and no partner is read.
        "x * lam": Implementation(gradient(lambda x, perm, lam: x * lam)),
    }
    faults = shape == PAGE_FAULT_SHAPE
    goals = (Goal("eager", 1 / (5 if faults else 10)), Goal("compiled", 1 / (2 if faults else 4)))
    asked = goals if shape in SHAPES["cpu"] else ()
    return Problem(
        "mix forward+backward", shape, dtype, fresh, implementations, 4 * x.nbytes, asked
    )


def over_100_mb(device: str) -> Problem:
    x, perm, lam = make_inputs(OVER_100_MB, torch.float32, device)
    implementations = {
        OURS: Implementation(lambda x: mmix_fast.mix_(x, perm, lam), eager_mix(x, perm, lam)),
        "mul_": Implementation(lambda x: x.mul_(1.0)),
    }
    goals = (Goal("mul_", 1.5),)
    op = "mix_ forward over 100 MB"
    return Problem(op, OVER_100_MB, x.dtype, x.clone, implementations, 2 * x.nbytes, goals)


def small(name: str, dtype: torch.dtype, device: str) -> Problem:
    x, perm, lam = make_inputs(SMALL, dtype, device)
    ours = partial(getattr(mmix_fast, name), perm=perm, lam=lam)
    expected = eager_mix(x.float(), perm, lam).to(dtype)
    return small_call(name, x, lam, ours, lambda x: eager_mix(x, perm, lam), expected)


def makers(
    shapes: tuple[tuple[int, ...], ...] | None,
    dtypes: tuple[torch.dtype, ...],
    device: str,
    quick: bool,
) -> list[Maker]:
    default = QUICK_SHAPES if quick else SHAPES[torch.device(device).type]
    calls = [partial(small, name) for name in ("mix_", "mix")]
    found = makers_for(shapes, default, dtypes, device, (forward, train), calls)
    if not shapes and not quick:
        found.append(partial(over_100_mb, device))
    if not shapes:
        found += other.makers(dtypes, device, quick)
    if not shapes and torch.float32 in dtypes:
        found += cutmix.makers(device)
    return found
