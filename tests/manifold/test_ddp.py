"""DistributedDataParallel, two gloo processes: gradients are the mean over the two shards."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.parallel import DistributedDataParallel

import mmix_fast as m
from benchmarks.models import MLP
from tests.distributed import ranks as processes

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


def worker(rank, compiled, results):
    torch.save(train(rank, compiled), results + str(rank))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.deep)])
def test_gradients_are_the_mean_over_ranks_with_the_same_draws(tmp_path, compiled):
    results = f"{tmp_path}/rank"
    processes.run(tmp_path, worker, RANKS, compiled, results)
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
