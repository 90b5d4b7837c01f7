"""Measures in several processes at once, connected by gloo, which all time the same calls."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from time import perf_counter

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import mmix_fast

from . import process_group
from .clock import Clock, cpu_seconds_of_others
from .problem import Maker, Op
from .runner import Effort, measure, threads
from .verify import WrongResult

TIMEOUT = timedelta(seconds=120)


class TogetherClock(Clock):
    """A call takes as long as in the slowest process. All get that time, so that all decide alike
    what to run next."""

    def seconds(self, op: Op, inputs: Sequence[Tensor]) -> float:
        dist.barrier()
        took = torch.tensor(super().seconds(op, inputs), dtype=torch.float64)
        dist.all_reduce(took, dist.ReduceOp.MAX)
        return took.item()


def work(
    rank: int,
    ranks: int,
    folder: str,
    makers: list[Maker],
    effort: Effort,
    backend: str | None,
    ceiling: float,
) -> None:
    """One of the processes. The first writes its records."""
    meeting = dist.FileStore(f"{folder}/meeting{ranks}", ranks)
    process_group.enter("gloo", store=meeting, rank=rank, world_size=ranks, timeout=TIMEOUT)
    random.seed(0)
    torch.manual_seed(0)
    records = []
    chosen = mmix_fast.use_backend(backend) if backend else nullcontext()
    with chosen, threads(1):
        for make in makers:
            records += measure(make(), TogetherClock(), effort, ceiling)
    if rank == 0:
        Path(folder, f"{ranks}.json").write_text(json.dumps(records))
    process_group.leave()


def run(
    makers: list[Maker], counts: Sequence[int], clock: Clock, effort: Effort, backend: str | None
) -> dict:
    """As runner.run, in so many processes as ``counts`` says, one number after the other."""
    begin, before = perf_counter(), cpu_seconds_of_others()
    ceiling = clock.copy_rate()
    records: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        for ranks in counts:
            try:
                mp.spawn(work, (ranks, folder, makers, effort, backend, ceiling), ranks)
            except mp.ProcessRaisedException as error:
                *_, line = str(error).strip().splitlines()
                if WrongResult.__name__ not in line:
                    raise
                raise WrongResult(line.partition(": ")[2]) from error
            records += json.loads(Path(folder, f"{ranks}.json").read_text())
    busy = None if before is None else (cpu_seconds_of_others() - before) / (perf_counter() - begin)
    return {"busy": busy, "ceiling": ceiling, "benchmarks": records}
