"""What a call costs beside its work: tiny inputs, the whole eager call, with autograd recording."""

from __future__ import annotations

from torch import Tensor

from .problem import OURS, Goal, Op, Problem, Rival

SMALL = (32, 64)
NEAR = (2e-2, 2e-2)  # relative, absolute
# Of the issue that cut this path: at most twice x.mul_(lam), and 6 us.
SHARE, PLUS_S = 2.0, 6e-6


def recorded(name: str, x: Tensor, lam: Tensor, ours: Op, eager: Op, want: Tensor) -> Problem:
    """Each call gets a tensor of its own that autograd recorded: in place would chain the graph."""
    leaf = x.clone().requires_grad_()
    rivals = {
        OURS: Rival(ours, want, *NEAR),
        "eager": Rival(eager, want, *NEAR),
        "x.mul_(lam)": Rival(lambda x: x.mul_(lam)),
    }
    goals = (Goal("x.mul_(lam)", SHARE, PLUS_S),)
    op, shape = f"{name} small call", tuple(x.shape)
    return Problem(op, shape, x.dtype, leaf.clone, rivals, goals=goals, consumes=True, cold=False)
