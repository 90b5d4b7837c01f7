"""Tensors of more than 2^31 elements: no offset may be a 32-bit number."""

import pytest
import torch

import mmix_fast as m
from tests.support.cases import eager_loss

# One worker runs them, one after another: each holds up to 14 GB.
pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("large")]
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def leave_no_memory():
    yield
    torch.cuda.empty_cache()  # for the other workers


def need(gib):
    there = torch.cuda.get_device_properties(0).total_memory
    if there < gib << 30:
        pytest.skip(f"needs {gib} GiB of memory, the GPU has {there / 2**30:.0f}")


@pytest.mark.parametrize("op", [m.mix, m.mix_])
@pytest.mark.parametrize("rows", [3, 4096])
def test_mixing(op, rows):
    """Few long rows, and more rows than a slab holds."""
    need(12 if op is m.mix_ else 24)
    columns = 2**31 // rows + 8
    x = torch.zeros(rows, columns, dtype=BF16)
    x[:, -1] = torch.arange(rows) % 128
    want = (0.5 * x[:, -1].float() + 0.5 * x[:, -1].float().roll(-1)).to(BF16)
    out = op(x, torch.arange(rows).roll(-1), 0.5)
    assert torch.equal(out[:, -1], want)
    assert out.count_nonzero() == want.count_nonzero()


def test_cutmix():
    need(12)
    x = torch.zeros(3, 1, 2**15, 2**15 - 10_000, dtype=BF16)
    assert x.numel() > 2**31
    x[:, 0, -1, -1] = torch.tensor([1.0, 2.0, 4.0])
    height, width = x.shape[2:]
    m.cutmix_(x, torch.tensor([1, 2, 0]), (height - 5, height, width - 5, width))
    assert x[:, 0, -1, -1].tolist() == [2.0, 4.0, 1.0] and x.count_nonzero() == 3


@pytest.mark.parametrize("shape", [(2**15, 2**16 + 8), (2**21 + 8, 1024)], ids=str)
def test_the_loss_and_its_gradient(shape):
    """Rows of zeros, each of loss log C, but for a few at the beginning and at the end."""
    need(24)
    batch, classes = shape
    z = torch.zeros(shape, dtype=BF16)
    some = torch.tensor([0, 1, batch // 2, batch - 2, batch - 1])
    z[some] = torch.randn(len(some), classes).to(BF16)
    y, perm = torch.randint(0, classes, (batch,)), torch.arange(batch).flip(0)
    z.requires_grad_()
    loss = m.mixed_cross_entropy(z, y, perm, 0.3, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, z)

    few = z.detach()[some].float().requires_grad_()
    wanted = eager_loss(few, y[some], y[perm][some], 0.3, reduction="sum")
    (expected,) = torch.autograd.grad(wanted, few)
    zeros = (batch - len(some)) * torch.tensor(classes).log()
    torch.testing.assert_close(loss, wanted.detach() + zeros, rtol=1e-3, atol=0)
    torch.testing.assert_close(gradient[some].float(), expected, rtol=8e-3, atol=1e-6)
    labels = gradient.gather(1, y[:, None])[:, 0].float()
    assert (labels < -0.25).all()  # also of the rows between: a label has a gradient of its own
