"""Shared by the problems: formulas in eager PyTorch, inputs, tolerances and small calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..problem import OURS, Goal, Implementation, Op, Problem

Loss = Callable[..., Tensor]  # a function of the logits and further arguments

MIX_TOLERANCES = (2e-2, 2e-2)  # relative, absolute: baselines round to bfloat16 after each step

# Tolerances of a gradient to logits. The relative one is a few roundings, but not less than the
# error of compiled exponentials; it must stay below 1e-3, else a missing z-loss of 1e-4 would go
# unnoticed. The absolute one is a few roundings of a term's gradient, whose parts may cancel,
# divided by the number of terms, as the mean does: rows, or elements of a binary loss.
RTOL_ROUNDINGS, MIN_RTOL, ATOL_ROUNDINGS = 3, 1e-4, 4


def tolerances(z: Tensor, binary: bool = False) -> tuple[float, float]:
    """Relative and absolute tolerance of the gradient to the logits z."""
    eps, terms = torch.finfo(z.dtype).eps, z.numel() // (1 if binary else z.shape[1])
    return max(RTOL_ROUNDINGS * eps, MIN_RTOL), ATOL_ROUNDINGS * eps / terms


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Logits (B, C, ...), labels, a permutation and λ."""
    z = torch.randn(shape, device=device).to(dtype)
    y = torch.randint(0, shape[1], (shape[0], *shape[2:]), device=device)
    return z, y, torch.randperm(shape[0], device=device), torch.tensor(0.3, device=device)


def eager_mix(x: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    return lam * x + (1 - lam) * x[perm]


def two_terms(z: Tensor, y: Tensor, perm: Tensor, lam: Tensor, **options) -> Tensor:
    other = F.cross_entropy(z, y[perm], **options)
    return lam * F.cross_entropy(z, y, **options) + (1 - lam) * other


def soft_targets(z: Tensor, y: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    return soft_loss(z, F.one_hot(y, z.shape[1]).to(z.dtype), perm, lam)


def soft_loss(z: Tensor, t: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    return F.cross_entropy(z, lam * t + (1 - lam) * t[perm])


def gradient(of: Loss, *given: Tensor) -> Op:
    """An op that runs forward and backward: the gradient of ``of(z, *given)`` to the logits z."""
    return lambda z: torch.autograd.grad(of(z, *given), z)[0]


def expected_gradient(of: Loss, z: Tensor, dtype: torch.dtype, *given: Tensor) -> Tensor:
    """That gradient, computed in ``dtype`` and rounded to the dtype of z. z stays unchanged."""
    return gradient(of, *given)(z.to(dtype, copy=True).requires_grad_()).to(z.dtype)


SMALL = (32, 64)
# The goal: at most twice the time of x.mul_(lam), plus 6 us.
SMALL_SHARE, SMALL_PLUS_S = 2.0, 6e-6


def small_call(name: str, x: Tensor, lam: Tensor, ours: Op, eager: Op, expected: Tensor) -> Problem:
    """The overhead of a call: tiny inputs, forward in eager mode, with autograd recording.

    Each call gets a new tensor, since in-place calls on one would extend its graph.
    """
    leaf = x.clone().requires_grad_()
    implementations = {
        OURS: Implementation(ours, expected, *MIX_TOLERANCES),
        "eager": Implementation(eager, expected, *MIX_TOLERANCES),
        "x.mul_(lam)": Implementation(lambda x: x.mul_(lam)),
    }
    goals = (Goal("x.mul_(lam)", SMALL_SHARE, SMALL_PLUS_S),)
    op, shape = f"{name} small call", tuple(x.shape)
    return Problem(
        op, shape, x.dtype, leaf.clone, implementations, goals=goals, consumes=True, cold=False
    )
