"""What the ops allocate on a GPU: results, gradients, and a few bytes a row."""

import pytest
import torch

import mmix_fast as m

pytestmark = pytest.mark.gpu
INDEX = 24  # bytes a row that mix_ may take (SPEC)
STATS = 64  # bytes a row for what the loss keeps of a row, and the two labels
SMALL = 16 << 10  # numbers, and sums of parts of rows


def settle():
    """Waits until the autograd engine's thread has let go of the last backward's gradient.

    It may hold one for a while after the backward has returned, and needs the GIL to free it. Only
    then does it take up another backward.
    """
    one = torch.ones((), requires_grad=True)
    torch.autograd.grad(one * 1, one)


def extra(call):
    """The most bytes that the call asks for beyond what was held before; of a second call."""
    call()
    settle()
    torch.cuda.reset_peak_memory_stats()
    call()
    settle()
    # As asked for: the allocator may give a block up to 1 MB larger.
    asked = {k: torch.cuda.memory_stats()[f"requested_bytes.all.{k}"] for k in ("current", "peak")}
    return asked["peak"] - asked["current"]


@pytest.mark.parametrize("shape", [(64, 1 << 16), (4096, 512), (20_000, 512)], ids=str)
@pytest.mark.parametrize("per_sample", [False, True])
def test_mixing(shape, per_sample):
    x, perm = torch.randn(shape), torch.randperm(shape[0])
    lam = torch.rand(shape[0]) if per_sample else torch.tensor(0.3)
    index = INDEX * shape[0] + SMALL
    assert extra(lambda: m.mix_(x, perm, lam)) <= index
    assert x.nbytes <= extra(lambda: m.mix(x, perm, lam)) <= x.nbytes + index
    y = torch.randint(0, 10, shape[:1])
    soft = 40 * shape[0]
    assert extra(lambda: m.mix_batch_(x, y, perm, lam, num_classes=10)) <= soft + index


def test_mixing_channels_last_and_strided_batches():
    perm = torch.randperm(32)
    x = torch.randn(32, 64, 28, 28).contiguous(memory_format=torch.channels_last)
    assert extra(lambda: m.mix_(x, perm, 0.3)) <= INDEX * 32 + SMALL
    every_second = torch.randn(64, 1 << 14)[::2]
    assert extra(lambda: m.mix_(every_second, perm, 0.3)) <= INDEX * 32 + SMALL


@pytest.mark.parametrize("batch", [64, 1500])
def test_cutmix(batch):
    x, perm = torch.randn(batch, 3, 64, 64), torch.randperm(batch)
    boxes = torch.tensor([[0, 32, 8, 40]]).repeat(batch, 1)
    for box in ((0, 32, 8, 40), boxes):
        assert extra(lambda box=box: m.cutmix_(x, perm, box)) <= 2 * INDEX * batch + SMALL


@pytest.mark.parametrize("shape", [(256, 1000), (64, 21841), (8192, 100)], ids=str)
@pytest.mark.parametrize("upstream", [1.0, 0.25])
def test_the_loss_holds_one_gradient(shape, upstream):
    z, y, perm = torch.randn(shape), torch.randint(0, shape[1], shape[:1]), torch.randperm(shape[0])
    z.requires_grad_()

    def both(inplace):
        loss = m.mixed_cross_entropy(z, y, perm, 0.3, inplace_backward=inplace)
        return torch.autograd.grad(upstream * loss, z)[0]

    rows = STATS * shape[0] + SMALL
    assert extra(lambda: both(False)) <= z.nbytes + rows
    assert extra(lambda: both(True)) <= rows


def test_the_loss_of_probabilities_holds_one_gradient():
    z, t, perm = torch.randn(256, 1000), torch.rand(256, 1000).softmax(1), torch.randperm(256)
    z.requires_grad_()

    def both():
        return torch.autograd.grad(m.mixed_cross_entropy(z, t, perm, 0.3), z)[0]

    assert extra(both) <= z.nbytes + STATS * 256 + SMALL
