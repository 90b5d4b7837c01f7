"""Times the implementations of a problem in turns, so that noise hits all of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import quantiles
from time import perf_counter

import torch
from pytest_benchmark.stats import Stats
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from .clock import OVER_CACHE, Clock, cpu_seconds_of_others
from .problem import OURS, Maker, Problem
from .verify import verify

# A round repeats a short call until it takes ROUND_S: 1 ms is far more than an interrupt, and than
# 100 times the timer's precision, which is what pytest-benchmark asks for.
ROUND_S, PRECISIONS = 1e-3, 100
# Another process can fill the cache or the memory bus for a second. If our own interquartile range
# exceeds MAX_SCATTER of the median, the problem is measured again.
MAX_SCATTER = 0.2
# An input so small that it would take more copies is not measured cold: in training, the step has
# just written it.
MAX_COPIES = 4096


@dataclass(frozen=True)
class Effort:
    rounds: int  # the least number
    seconds: float  # more rounds are run until these have passed
    attempts: int = 3  # at most, where our own times scatter


FULL, QUICK = Effort(7, 1.0), Effort(5, 0.25)


class Inputs:
    """Inputs of the calls: one buffer repeatedly, several in turn, or a new one for each call."""

    def __init__(self, problem: Problem, copies: int) -> None:
        self.fresh = problem.fresh if problem.consumes else None
        self.ring = cycle([problem.fresh() for _ in range(copies)])

    def take(self, count: int) -> list[Tensor]:
        if self.fresh:
            return [self.fresh() for _ in range(count)]
        return list(islice(self.ring, count))


def copies_for(nbytes: int, cache_bytes: int) -> dict[str, int]:
    """cache -> copies of the input.

    No cold measurement if one input already fills the cache, or if it takes too many copies.
    """
    copies = max(2, -(-OVER_CACHE * cache_bytes // max(1, nbytes)))
    if nbytes >= cache_bytes or copies > MAX_COPIES:
        return {"warm": 1}
    return {"warm": 1, "cold": copies}


def calibrate(clock: Clock, problem: Problem, inputs: Inputs) -> dict[str, int]:
    """Calls in a round, for each implementation, found by doubling. This is also the warm-up."""
    least = max(ROUND_S, PRECISIONS * clock.precision)
    if problem.slow:
        return dict.fromkeys(problem.implementations, 1)
    calls = {}
    for name, implementation in problem.implementations.items():
        count = 1
        while (took := clock.seconds(implementation.op, inputs.take(count))) < least / 2:
            count *= 2
        calls[name] = max(1, round(count * least / took))
    return calls


def interleave(
    clock: Clock, problem: Problem, inputs: Inputs, effort: Effort
) -> tuple[dict[str, Stats], dict[str, int]]:
    """For each implementation: seconds of a call, by round, and the calls in a round."""
    calls = calibrate(clock, problem, inputs)
    stats = {name: Stats() for name in problem.implementations}
    start = perf_counter()
    while len(stats[OURS].data) < effort.rounds or perf_counter() - start < effort.seconds:
        # The order changes each round: the one before leaves its state of cache and heap.
        for name in random.sample(list(stats), len(stats)):
            turn = inputs.take(calls[name])
            took = clock.seconds(problem.implementations[name].op, turn)
            stats[name].update(took / calls[name])
    return stats, calls


def least_scattered(
    clock: Clock, problem: Problem, copies: int, effort: Effort
) -> tuple[dict[str, Stats], dict[str, int]]:
    """Measures until our own times scatter little, at most ``effort.attempts`` times.

    Returns the measurement in which they scattered least, whether or not it was the fastest.
    """
    tried = []
    for _ in range(effort.attempts):
        tried.append(interleave(clock, problem, Inputs(problem, copies), effort))
        if scatter(tried[-1]) <= MAX_SCATTER:
            break
    return min(tried, key=scatter)


def scatter(measured: tuple[dict[str, Stats], dict[str, int]]) -> float:
    ours = measured[0][OURS]
    return ours.iqr / ours.median


def ratio(implementation: Stats, ours: Stats) -> dict[str, float]:
    """The ratio of the medians; quartiles of the ratios within rounds, where noise is shared."""
    low, _, high = quantiles(
        [r / o for r, o in zip(implementation.data, ours.data, strict=True)], n=4
    )
    return {"ratio": implementation.median / ours.median, "ratio_q1": low, "ratio_q3": high}


def record(problem: Problem, cache: str, name: str, stats: Stats, calls: int, extra: dict) -> dict:
    """A record in pytest-benchmark's layout."""
    group = f"{problem.title} {cache}"
    dtype = str(problem.dtype).removeprefix("torch.")
    params = {"op": problem.op, "shape": list(problem.shape), "dtype": dtype, "cache": cache}
    if problem.threads is not None:
        params["threads"] = problem.threads
    return {
        "group": group,
        "name": f"{group} [{name}]",
        "fullname": f"{group} [{name}]",
        "params": params | {"implementation": name, "sweep": problem.sweep},
        "param": name,
        "extra_info": extra,
        "options": {},
        "stats": stats.as_dict() | {"iterations": calls},
    }


def measure(problem: Problem, clock: Clock, effort: Effort, ceiling: float) -> list[dict]:
    """A record for each implementation, with a warm and with a cold cache."""
    compile_s = verify(problem.small or problem)
    peak = {}
    for name, implementation in problem.implementations.items():
        x = problem.fresh()
        peak[name] = clock.peak_bytes(lambda op=implementation.op, x=x: op(x))
    copies = {"warm": 1}
    if problem.cold:
        copies = copies_for(problem.fresh().nbytes, clock.cache_bytes())
    records = []
    for cache, count in copies.items():
        stats, calls = least_scattered(clock, problem, count, effort)
        ours = stats[OURS]
        for name, own in stats.items():
            extra = ratio(own, ours) | {"peak_bytes": peak[name], "moved": problem.moved}
            if problem.moved:
                extra["gb_per_s"] = problem.moved / own.median / 1e9
                extra["share_of_copy"] = extra["gb_per_s"] / ceiling
            if problem.held:
                extra["memory_share"] = problem.memory_share(peak[name])
                if problem.memory_goal and name == OURS:
                    met = extra["memory_share"] <= problem.memory_goal
                    extra["memory_goal"] = {"text": f"{problem.memory_goal:g}x", "met": met}
            extra |= problem.notes.get(name, {})
            if name in compile_s:
                extra["compile_s"] = compile_s[name]
            goal = next((g for g in problem.goals if g.baseline == name), None)
            if goal and cache == "warm":  # goals are for warm caches
                extra["goal"] = {"text": str(goal), "met": goal.met(ours.median, own.median)}
            records.append(record(problem, cache, name, own, calls[name], extra))
    return records


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Runs the block with ``count`` threads (None: no change), then restores the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(name: str, makers: Sequence[Maker], clock: Clock, effort: Effort) -> dict:
    """Measures all problems of a command, and how many CPUs other processes used meanwhile."""
    random.seed(0)
    torch.manual_seed(0)
    begin, before = perf_counter(), cpu_seconds_of_others()
    ceiling = clock.copy_rate()
    records: list[dict] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), transient=True) as progress:
        task = progress.add_task(name, total=len(makers))
        for make in makers:
            problem = make()
            progress.update(task, description=problem.title)
            with threads(problem.threads):
                records += measure(problem, clock, effort, ceiling)
            progress.advance(task)
    busy = None if before is None else (cpu_seconds_of_others() - before) / (perf_counter() - begin)
    return {"busy": busy, "ceiling": ceiling, "benchmarks": records}
