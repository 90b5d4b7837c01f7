"""No thread of a process group outlives it: it may abort the process at its end."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks import process_group, ranks, runner
from benchmarks.problems import sharded
from benchmarks.wire import Wire
from tests.distributed.ranks import wait_for_gloo_threads


def nothing():
    pass


def a_dispatch_mode():
    with Wire():
        dist.all_reduce(torch.ones(2))


def a_model_in_a_cycle():
    model = DistributedDataParallel(torch.nn.Linear(2, 3))
    model(torch.ones(1, 2)).sum().backward()
    model.itself = [model]


def alone(rank, folder, use):
    store = dist.FileStore(f"{folder}/store", 1)
    process_group.enter("gloo", store=store, rank=0, world_size=1)
    use()
    wait_for_gloo_threads(some=True)
    process_group.leave()
    wait_for_gloo_threads(some=False)


@pytest.mark.parametrize("use", [nothing, a_dispatch_mode, a_model_in_a_cycle])
def test_threads_end_with_the_group(tmp_path, use):
    torch.multiprocessing.spawn(alone, (str(tmp_path), use))  # new: it has imported little of torch


def measured(rank, folder):
    make = partial(sharded.loss, (6, 4, 11), torch.float32)
    ranks.work(0, 1, folder, [make], runner.Effort(3, 0.0), "reference", 1e9)
    wait_for_gloo_threads(some=False)


def test_benchmarks_in_several_processes_leave_none(tmp_path):
    torch.multiprocessing.spawn(measured, (str(tmp_path),))
