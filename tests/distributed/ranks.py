"""Runs a function in several gloo processes. A rank that hangs is killed, and the test fails."""

import datetime
import gc
import time

import torch
import torch.distributed as dist

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
    dist.init_process_group(
        "gloo",
        init_method=address,
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=SECONDS // 2),
    )
    torch.manual_seed(0)  # the same on all ranks
    function(rank, *args)
    # A graph or a model in a cycle of references (that of a caught exception) would keep the group
    # alive, and gloo's threads may then abort the process at its end.
    gc.collect()
    dist.destroy_process_group()
