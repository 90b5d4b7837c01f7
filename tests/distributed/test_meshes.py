"""A backbone in data parallel (FSDP2, DDP) and a head sharded over classes, on a mesh of 2 x 2."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

import mmix_fast as m
from tests.distributed import ranks as processes

B, D, C = 6, 5, 11
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch has no distributed")


def make_backbone():
    return nn.Sequential(nn.Linear(8, D), nn.GELU(), nn.Linear(D, D))


class HeadLoss(nn.Linear):
    """A head that returns its loss, so that FSDP's hooks run around it."""

    def forward(self, features, y, mix):
        return mix.linear_loss(features, self, y, chunk_size=4)


def parallel(head, mesh, chunks):
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    if chunks:  # ColwiseParallel would take the loss for logits
        for name, p in list(head.named_parameters()):
            head.register_parameter(name, nn.Parameter(distribute_tensor(p, mesh, [Shard(0)])))
    else:
        plan = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
        parallelize_module(head, mesh, plan)
    return head


def train(rank, wrap, chunks):
    """The gradients of one step are those of one process over both halves of the data."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Replicate, init_device_mesh
    from torch.nn.parallel import DistributedDataParallel

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "classes"))
    torch.manual_seed(0)
    backbone, head = make_backbone(), HeadLoss(D, C) if chunks else nn.Linear(D, C)
    copies = make_backbone(), nn.Linear(D, C)
    for model, copy in zip((backbone, head), copies, strict=True):
        copy.load_state_dict(model.state_dict())
    head = parallel(head, mesh["classes"], chunks)
    if wrap == "fsdp":
        backbone = fully_shard(backbone, mesh=mesh["data"])
        head = fully_shard(head, mesh=mesh["data"])
    else:
        backbone = DistributedDataParallel(backbone, process_group=mesh["data"].get_group())
    mine = mesh["data"].get_local_rank()
    x, y = torch.randn(2, B, 8), torch.randint(0, C, (2, B))
    draws = [m.sample_mix(B, 2.0, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    halves = zip(x, y, draws, strict=True)
    want = torch.stack([mix.cross_entropy(copies[1](copies[0](a)), b) for a, b, mix in halves])
    want.mean().backward()

    features = backbone(x[mine])
    if chunks:
        hidden = DTensor.from_local(features, mesh["classes"], [Replicate()])
        if wrap == "fsdp":
            # Outside FSDP's hooks the weight is sharded over the data too, and is refused.
            with pytest.raises(ValueError, match="on one mesh"):
                draws[mine].linear_loss(hidden, head, y[mine])
        loss = head(hidden, y[mine], draws[mine])
    else:
        loss = draws[mine].cross_entropy(head(features), y[mine])
    torch.testing.assert_close(loss, want[mine].detach(), rtol=1e-5, atol=1e-6)
    loss.backward()
    for model, copy in zip((backbone, head), copies, strict=True):
        for p, right in zip(model.parameters(), copy.parameters(), strict=True):
            grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad.clone()
            if wrap == "ddp" and model is head:  # not averaged over the data by anyone
                dist.all_reduce(grad, group=mesh["data"].get_group())
                grad = grad / 2
            torch.testing.assert_close(grad, right.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunks", [False, True])
@pytest.mark.parametrize("wrap", ["fsdp", pytest.param("ddp", marks=pytest.mark.deep)])
def test_data_parallel_backbone_and_sharded_head(tmp_path, wrap, chunks):
    processes.run(tmp_path, train, 4, wrap, chunks)


def head_inside(rank):
    """ManifoldMixup.linear_loss where DDP holds the backbone and the head."""
    from torch.nn.parallel import DistributedDataParallel

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = make_backbone(), nn.Linear(D, C)

        def forward(self, x):
            return self.backbone(x)

    torch.manual_seed(0)
    model = Model()
    ddp = DistributedDataParallel(model)
    mixup = m.ManifoldMixup(ddp, ["", "backbone.0"], generator=torch.Generator().manual_seed(7))
    x, y = torch.randn(2, B, 8), torch.randint(0, C, (2, B))
    for _ in range(3):
        ddp.zero_grad()
        loss = mixup.linear_loss(ddp(x[rank]), model.head, y[rank], chunk_size=2)
        draw, layer = mixup.mix, mixup.layer
        loss.backward()
        truths = []
        for a, b in zip(x, y, strict=True):
            h = draw.mix(a) if layer == "" else a
            h = model.backbone[0](h)
            h = draw.mix(h) if layer else h
            want = draw.cross_entropy(model.head(model.backbone[1:](h)), b)
            truths.append(torch.autograd.grad(want, list(model.parameters())))
        for p, *parts in zip(model.parameters(), *truths, strict=True):
            torch.testing.assert_close(p.grad, sum(parts) / 2)


def test_linear_loss_under_ddp(tmp_path):
    processes.run(tmp_path, head_inside, 2)
