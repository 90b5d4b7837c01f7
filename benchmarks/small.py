"""What a call costs beside its work: tiny inputs, the whole eager call, with autograd recording."""

from __future__ import annotations

from torch import Tensor

from .problem import OURS, Goal, Implementation, Op, Problem

SMALL = (32, 64)
TOLERANCES = (2e-2, 2e-2)  # relative, absolute
# Of the issue that cut this path: at most twice x.mul_(lam), and 6 us.
SHARE, PLUS_S = 2.0, 6e-6


def small_call(name: str, x: Tensor, lam: Tensor, ours: Op, eager: Op, expected: Tensor) -> Problem:
    """Each call gets a tensor of its own that autograd recorded: in place would chain the graph."""
    leaf = x.clone().requires_grad_()
    implementations = {
        OURS: Implementation(ours, expected, *TOLERANCES),
        "eager": Implementation(eager, expected, *TOLERANCES),
        "x.mul_(lam)": Implementation(lambda x: x.mul_(lam)),
    }
    goals = (Goal("x.mul_(lam)", SHARE, PLUS_S),)
    op, shape = f"{name} small call", tuple(x.shape)
    return Problem(
        op, shape, x.dtype, leaf.clone, implementations, goals=goals, consumes=True, cold=False
    )
