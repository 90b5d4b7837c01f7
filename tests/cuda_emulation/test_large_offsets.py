"""Rows over 2^31 elements and 2^32 bytes apart: no kernel counts offsets in 32 bits.

Only the pages of the rows themselves take memory.
"""

import pytest
import torch

from tests.cuda_emulation.binary_cross_entropy_checks import arguments as binary_arguments
from tests.cuda_emulation.binary_cross_entropy_checks import truth as binary_truth
from tests.cuda_emulation.cross_entropy_checks import close, loss_of
from tests.cuda_emulation.cross_entropy_checks import truth as loss_truth
from tests.cuda_emulation.mixing_checks import H100, OPS, same, truth
from tests.support.cases import TOLERANCE

PERM, LAM = torch.tensor([2, 0, 1]), torch.tensor(0.3)
STEP = 2**30 + 8  # two steps are more than 2^31 elements of 2 bytes


def far_apart(*sample):
    """Random rows, and the same rows STEP elements apart."""
    rows = torch.randn(3, *sample).bfloat16()
    storage = torch.empty(2 * STEP + rows[0].numel(), dtype=rows.dtype)
    apart = storage.as_strided(rows.shape, (STEP, *rows.stride()[1:]))
    return rows, apart.copy_(rows)


# Multiprocessors and shared bytes: a block has all rows, or it gathers them.
@pytest.mark.parametrize("device", [(2, H100[1]), (2, 300)], ids=["slab", "gather"])
@pytest.mark.parametrize("columns", [64, 61], ids=["aligned", "odd"])
def test_mixing(emulator, device, columns):
    rows, x = far_apart(columns)
    emulator.set_device(*device)
    want = truth(rows, PERM, LAM.expand(3), 1 - LAM.expand(3))
    try:
        assert same(OPS.mix(x, PERM, LAM, 0, False), want)
        OPS.mix_(x, PERM, LAM, 0)
    finally:
        emulator.set_device(*H100)
    assert same(x, want)


@pytest.mark.parametrize("width", [8, 7], ids=["aligned", "odd"])
def test_cutmix(emulator, width):
    rows, x = far_apart(2, 4, width)
    OPS.cutmix_(x, PERM, torch.tensor([1, 3, 2, 6]), torch.zeros(()))
    rows[..., 1:3, 2:6] = rows[PERM][..., 1:3, 2:6]
    assert torch.equal(x, rows)


@pytest.mark.parametrize("classes", [8, 1040, 1041])
def test_loss(emulator, classes):
    rows, z = far_apart(classes)
    y, upstream = torch.tensor([1, 7, 3]), torch.ones(())
    (loss, stats, _), args = loss_of(z, y, PERM, LAM)
    want, want_gradient = loss_truth(rows, y, PERM, LAM, upstream)
    assert close(loss, want, TOLERANCE[torch.float32])
    OPS.cross_entropy_backward_(upstream, stats, z, *args)
    assert close(z, want_gradient, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("classes", [8, 13])
def test_binary_loss(emulator, classes):
    rows, z = far_apart(classes)
    y, upstream = torch.tensor([1, 7, 3]), torch.ones(())
    _, t = far_apart(classes)  # random targets
    for target in (y, t):
        args = binary_arguments(target, PERM, LAM, label_smoothing=0.1)
        loss, _ = OPS.binary_cross_entropy(z, *args, None)
        want, want_gradient = binary_truth(
            rows, target.clone(), PERM, LAM, upstream, label_smoothing=0.1
        )
        assert close(loss, want, TOLERANCE[torch.float32])
    OPS.binary_cross_entropy_backward_(upstream, z, *args)
    assert close(z, want_gradient, TOLERANCE[torch.bfloat16])
