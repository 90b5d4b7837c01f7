"""Checks what an implementation computes. Nothing is timed before its result was checked."""

from __future__ import annotations

from time import perf_counter

import torch

from .problem import Problem


class WrongResult(AssertionError):
    """An implementation does not give the expected result."""


def check(problem: Problem, name: str) -> None:
    """Raises WrongResult unless this implementation gives the expected result, if it has one."""
    implementation = problem.implementations[name]
    got = implementation.op(problem.fresh())
    if implementation.expected is None:
        return
    near = {"rtol": implementation.rtol, "atol": implementation.atol, "check_dtype": False}
    try:
        torch.testing.assert_close(got, implementation.expected, **near)
    except AssertionError as error:
        line = " ".join(str(error).split())
        raise WrongResult(
            f"{name} of {problem.title} must give the formula's result: {line}"
        ) from error


def verify(problem: Problem) -> dict[str, float]:
    """Checks every implementation's result. Returns the seconds that compiling took, by name."""
    compiling = {}
    for name, implementation in problem.implementations.items():
        begin = perf_counter()
        check(problem, name)
        first = perf_counter() - begin
        if implementation.compiled:
            x = problem.fresh()
            begin = perf_counter()
            implementation.op(x)
            compiling[name] = first - (perf_counter() - begin)
    return compiling
