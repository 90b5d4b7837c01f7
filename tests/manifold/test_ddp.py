"""DistributedDataParallel, two gloo processes: gradients are the mean over the two shards."""

import copy
import gc

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.testing import CompileCounter
from torch.nn.parallel import DistributedDataParallel

import mmix_fast as m
from benchmarks.models import MLP

RANKS, STEPS = 2, 6


def shard(rank, step):
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(6, 16, generator=generator), torch.randint(0, 5, (6,), generator=generator)


def train(rank, compiled):
    torch.manual_seed(0)
    model = MLP()
    counter = CompileCounter()
    inner = torch.compile(model, fullgraph=True, backend=counter) if compiled else model
    ddp = DistributedDataParallel(inner)
    generator = torch.Generator().manual_seed(7)  # the same seed on all ranks
    mixup = m.ManifoldMixup(ddp, ["", "module.1", "3"], generator=generator)
    out = []
    for step in range(STEPS):
        ddp.zero_grad()
        x, y = shard(rank, step)
        mixup.loss(ddp(x), y).backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        out.append((mixup.layer, mixup.mix.perm, mixup.mix.lam, gradients))
    return out, counter.frame_count


def worker(rank, address, compiled, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=RANKS)
    torch.save(train(rank, compiled), results + str(rank))
    gc.collect()  # a living DDP keeps the group, and gloo may then abort the process at its end
    dist.destroy_process_group()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.deep)])
def test_gradients_are_the_mean_over_ranks_with_the_same_draws(tmp_path, compiled):
    address, results = f"file://{tmp_path}/store", f"{tmp_path}/rank"
    torch.multiprocessing.spawn(worker, (address, compiled, results), nprocs=RANKS)
    ranks = [torch.load(results + str(r)) for r in range(RANKS)]
    torch.manual_seed(0)
    model = MLP()
    for step in range(STEPS):
        grads = []
        for rank in range(RANKS):
            layer, perm, lam, _ = ranks[rank][0][step]
            assert layer == ranks[0][0][step][0] and torch.equal(perm, ranks[0][0][step][1])
            single = copy.deepcopy(model)
            x, y = shard(rank, step)
            name = {"module.1": "1"}.get(layer, layer)
            mix = m.Mix(perm, lam)
            mix.cross_entropy(single.by_hand(x, name, mix), y).backward()
            grads.append([p.grad for p in single.parameters()])
        for rank in range(RANKS):
            for a, b, got in zip(*grads, ranks[rank][0][step][3], strict=True):
                torch.testing.assert_close(got, (a + b) / 2)
    assert len({draw[0] for draw in ranks[0][0]}) > 1
    if compiled:  # the draw is outside the graph, and there is one graph for each layer
        assert all(frames <= 4 for _, frames in ranks)
