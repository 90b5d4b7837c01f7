"""Tensors that the losses and mixing allocate: none of the size of the logits but the gradient."""

import pytest
import torch

import mmix_fast as m
from benchmarks.clock import Clock

B, C = 64, 500
SMALL = 8192  # losses, labels as int64, index data: 24 bytes a row, and a few 0-dim tensors


def target(kind):
    if kind == "labels":
        return torch.randint(0, C, (B,))
    return torch.rand(B, C) < 0.1 if kind == "bool" else torch.rand(B, C)


@pytest.fixture
def compiled(backend):
    if backend == "reference":
        pytest.skip("plain PyTorch allocates what its ops do")


@pytest.mark.parametrize("loss", [m.mixed_cross_entropy, m.mixed_binary_cross_entropy])
@pytest.mark.parametrize("kind", ["labels", "bool", "probabilities"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_losses_allocate_the_gradient_alone(compiled, loss, kind, dtype):
    if kind == "bool" and loss is m.mixed_cross_entropy:
        pytest.skip("its targets are labels or probabilities")
    z, perm, lam = torch.randn(B, C).to(dtype), torch.randperm(B), torch.rand(B)
    y, options = target(kind), {"label_smoothing": 0.1}

    def step(up, **more):
        own = z.clone().requires_grad_()

        def work():
            return torch.autograd.grad(up * loss(own, y, perm, lam, **options, **more), own)

        work() if not more else None  # the first call may find out what the upstream is
        return Clock().peak_bytes(work)

    for up in (1.0, 0.5):
        assert step(up) <= z.nbytes + SMALL
        assert step(up, inplace_backward=True) <= SMALL
    with torch.no_grad():
        assert Clock().peak_bytes(lambda: loss(z, y, perm, lam, **options)) <= SMALL


def test_mixing_with_a_second_batch_in_place_allocates_index_data_alone(compiled):
    x, other = torch.randn(B, C), torch.randn(B // 2, C)
    perm = torch.randint(0, B // 2, (B,))
    assert Clock().peak_bytes(lambda: m.mix_(x, perm, 0.3, other=other)) <= 24 * B
