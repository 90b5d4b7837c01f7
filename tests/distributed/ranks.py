"""Runs a function in several gloo processes. A rank that hangs is killed, and the test fails."""

import contextlib
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


def wait_for_gloo_threads(some):
    """Returns once this process has threads of a process group (``some``) or none; or fails.

    It waits because a new thread gets its name only when it first runs, and one that ended is
    listed for a moment longer. The threads of a group that something keeps stay for ever.
    """
    end = time.monotonic() + 20  # seconds: a machine with more work than cores is slow
    while some != ("gloo" in (names := _names_of_threads())):
        assert time.monotonic() < end, f"threads of gloo expected: {some}; threads: {names}"
        time.sleep(0.01)


def _names_of_threads():
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it ended after it was listed
            names.append(path.read_text().strip())
    return " ".join(names)
