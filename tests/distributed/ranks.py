"""Runs a function in several gloo processes. A rank that hangs is killed, and the test fails."""

import datetime
import os
import time
from pathlib import Path

import torch

from benchmarks import process_group

SECONDS = 120  # for all that a test does in its processes; they take about 10 to start


def run(tmp_path, function, ranks, *args):
    """``function(rank, *args)`` in each rank, under an initialized process group."""
    address = f"file://{tmp_path}/store"
    context = torch.multiprocessing.spawn(
        _worker, (address, function, ranks, args), nprocs=ranks, join=False
    )
    end = time.monotonic() + SECONDS
    while not context.join(timeout=1):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            raise AssertionError(f"{function.__name__}: a rank hangs")


def _worker(rank, address, function, ranks, args):
    torch.set_num_threads(1)
    process_group.enter(
        "gloo",
        init_method=address,
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=SECONDS // 2),
    )
    torch.manual_seed(0)  # the same on all ranks
    function(rank, *args)
    process_group.leave()
    os._exit(0)  # torch's caches have the group of a DTensor: see process_group.leave


def threads_of_gloo():
    """The names of this process's threads that belong to a process group."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]
