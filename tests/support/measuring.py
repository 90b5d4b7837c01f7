"""A problem that takes no time to measure."""

import torch

from benchmarks import runner
from benchmarks.problem import OURS, Goal, Problem, Rival

EFFORT = runner.Effort(3, 0.0)


def problem(op="double", **more):
    x = torch.randn(64, 256)
    rivals = {OURS: Rival(lambda x: x + x, x * 2), "eager": Rival(lambda x: x * 2, x * 2)}
    rivals["plain"] = Rival(lambda x: x + 1)  # no rival: not what is asked for, and not verified
    more = {"moved": 2 * x.nbytes, "goals": (Goal("eager", 1e-9),), **more}
    return Problem(op, tuple(x.shape), x.dtype, x.clone, more.pop("rivals", rivals), **more)
