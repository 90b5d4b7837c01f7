"""A problem that is quick to measure."""

import torch

from benchmarks import runner
from benchmarks.problem import OURS, Goal, Implementation, Problem

EFFORT = runner.Effort(3, 0.0)


def problem(op="double", **more):
    x = torch.randn(64, 256)
    implementations = {
        OURS: Implementation(lambda x: x + x, x * 2),
        "eager": Implementation(lambda x: x * 2, x * 2),
    }
    implementations["plain"] = Implementation(
        lambda x: x + 1
    )  # a plain pass: its result is not checked
    more = {"moved": 2 * x.nbytes, "goals": (Goal("eager", 1e-9),), **more}
    return Problem(
        op, tuple(x.shape), x.dtype, x.clone, more.pop("implementations", implementations), **more
    )
