"""Times the cases on one backend, or the baselines, and writes what was found to a part file.

Each is a process of its own: an error that a GPU cannot recover from ends only that one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

import mmix_fast

from ..clock import OVER_CACHE, Clock, CudaClock, StubClock
from ..datafile import write_json
from ..problem import OURS, Problem
from ..verify import check
from .cases import Case, cases

BASELINES = "baselines"
BACKENDS = ("cuda", "triton")
PARTS = (*BACKENDS, BASELINES)
STANDING_IN = {"cuda": "cpp", "triton": "reference"}  # in a dry run
ROUNDS, LEAST_S = 11, 2e-3  # of each measurement; a round takes at least so long
MAX_COPIES = 512  # of an input; the smallest problems then stay in the cache


def copies_for(problem: Problem, cache_bytes: int) -> int:
    """So many inputs that neither they nor what is written is in the cache when its turn comes."""
    size = max(1, problem.fresh().nbytes)
    return min(MAX_COPIES, max(2, -(-OVER_CACHE * cache_bytes // size)))


def times(problem: Problem, name: str, clock: Clock) -> dict:
    check(problem, name)
    op = problem.implementations[name].op
    inputs = [problem.fresh() for _ in range(copies_for(problem, clock.cache_bytes()))]
    # Plain calls, one after another, as a training loop makes them.
    count = max(1, min(len(inputs), round(LEAST_S / max(1e-9, clock.seconds(op, inputs[:1])))))
    called = [clock.seconds(op, inputs[:count]) / count for _ in range(ROUNDS)]
    replayed = clock.graph_seconds(op, inputs, ROUNDS, LEAST_S)
    return {"graph_s": replayed, "call_s": called}


def why(error: Exception) -> dict:
    if isinstance(error, torch.OutOfMemoryError):
        return {"skipped": "not enough memory on this GPU"}
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return {"error": line[:500]}


def attempt(problem: Problem, name: str, clock: Clock) -> dict:
    """The times, or why there are none: one implementation's failure must not end the others'."""
    try:
        return times(problem, name, clock)
    except Exception as error:  # of any kind: it is reported
        return why(error)
    finally:
        if clock.device.type == "cuda":
            torch.cuda.empty_cache()


def chosen(who: str, dry: bool) -> AbstractContextManager[None]:
    if who == BASELINES:
        return nullcontext()
    return mmix_fast.use_backend(STANDING_IN[who] if dry else who)


def row_of(case: Case, who: str, clock: Clock) -> dict:
    """A row of the part file: the problem, and name -> times."""
    try:
        problem = case.make(str(clock.device))
    except Exception as error:  # the other cases go on
        return {"title": case.title, "by": {who: why(error)}}
    theirs = {name: name for name in problem.implementations if name != OURS}
    names = theirs if who == BASELINES else {who: OURS}
    return {
        "title": problem.title,
        "op": problem.op,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "shape": list(problem.shape),
        "moved": problem.moved,
        "share": case.share,
        "by": {shown: attempt(problem, name, clock) for shown, name in names.items()},
    }


def rows(who: str, clock: Clock, dry: bool) -> Iterator[dict]:
    with chosen(who, dry):
        for case in cases(dry, compiler=who == BASELINES and not dry):
            begin = perf_counter()
            torch.manual_seed(0)
            row = row_of(case, who, clock)
            shown = ", ".join(f"{name} {brief(found)}" for name, found in row["by"].items())
            print(f"{row['title']}: {shown} ({perf_counter() - begin:.1f} s)", flush=True)
            yield row


def brief(found: dict) -> str:
    if "graph_s" in found:
        return f"{1e6 * median(found['graph_s']):.4g} us"
    return found.get("skipped") or found["error"]


def main(who: str, folder: Path, dry: bool = False) -> None:
    clock = StubClock() if dry else CudaClock("cuda")
    part: dict = {"copy_gb_per_s": clock.copy_rate(), "rows": []}
    print(f"{clock.name()}: a copy moves {part['copy_gb_per_s']:.4g} GB/s", flush=True)
    for row in rows(who, clock, dry):
        part["rows"].append(row)
        write_json(folder / f"{who}.json", part)  # each time: the next row may end the process


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
