"""Bytes that the loss moves with labels: logits are read once, and the gradient is written once.

Counted in 32-byte sectors for each access of a warp.
"""

import pytest
import torch

from tests.cuda_emulation.cross_entropy_checks import CALM, CLUSTERS, OPS, SEGMENTS, WAYS, loss_of
from tests.support.cases import DTYPES

SIZES = [
    (2, 10), (4096, 10), (333, 100), (64, 512), (64, 520), (256, 1000), (16, 21_841), (2, 128_000)
]  # fmt: skip


MORE = [(1000, 12), (37, 1008), (4, 32_000), (4, 50_257), (2, 65_536), (1024, 1000)]


def moved(emulator, *tensors):
    """Sectors of 32 bytes that were read and written."""
    counted = emulator.traffic()
    return sum(
        counted[t.data_ptr()].loaded_sectors + counted[t.data_ptr()].stored_sectors for t in tensors
    )


def check_traffic(emulator, batch, classes, dtype):
    z = torch.randn(batch, classes).to(dtype)
    y, perm = torch.randint(0, classes, (batch,)), torch.randperm(batch)
    row_bytes = classes * dtype.itemsize
    floor = 2 * -(-batch * row_bytes // 32)
    # If a row is no multiple of 16 bytes, its ends are extra accesses.
    limit = 1.05 * floor if row_bytes % 16 == 0 else 1.3 * floor + 2
    emulator.count_traffic(True)
    emulator.launched()
    (loss, stats, gradient), args = loss_of(z, y, perm, 0.3)
    assert moved(emulator, z, gradient) <= limit
    # Labels, perm and statistics of a row: at most a sector for each access, once for each block of
    # the row. And each block reads all labels once, to count them, four in a sector.
    blocks = max(1, row_bytes // 2**14)
    counting = sum(launch.blocks for launch in emulator.launched()) * (batch / 4 + 2)
    assert moved(emulator, y, perm, stats) <= 8 * blocks * batch + counting
    emulator.count_traffic(True)
    OPS.cross_entropy_backward_(torch.ones(()).to(loss.dtype) / 2, stats, z, *args)
    assert moved(emulator, z) <= limit


@pytest.mark.parametrize("batch, classes", SIZES)
@pytest.mark.parametrize(
    "dtype, odd", [(torch.bfloat16, 0), (torch.bfloat16, 1), (torch.float32, 1)]
)
def test_logits_are_read_once_and_the_gradient_written_once(emulator, batch, classes, dtype, odd):
    check_traffic(emulator, batch, classes + odd, dtype)


@pytest.mark.deep
@pytest.mark.parametrize("batch, classes", SIZES + MORE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("odd", [0, 1, 7])
def test_traffic_of_every_size_and_dtype(emulator, batch, classes, dtype, odd):
    check_traffic(emulator, batch, classes + odd, dtype)


def test_without_clusters_what_exceeds_a_block_is_read_twice_at_most(emulator):
    for device, limit in ((SEGMENTS, 1.5), (CLUSTERS, 1.05), (CALM, 1.05)):
        emulator.set_device(*device)
        z, perm = torch.randn(2, 8000), torch.tensor([1, 0])
        emulator.count_traffic(True)
        (_, _, gradient), _ = loss_of(z, torch.tensor([3, 5]), perm, 0.3)
        assert moved(emulator, z, gradient) * 32 <= 2 * limit * z.numel() * 4


def test_accesses_are_16_bytes_wide(emulator):
    for z in (torch.randn(64, 1000).half(), torch.randn(512, 10), torch.randn(8, 4001)):
        emulator.count_traffic(True)
        n = len(z)
        (_, _, gradient), _ = loss_of(z, torch.randint(0, 10, (n,)), torch.randperm(n), 0.3)
        for widths in (
            emulator.traffic()[z.data_ptr()].loads,
            emulator.traffic()[gradient.data_ptr()].stores,
        ):  # of 1, 2, 4, 8, 16 bytes
            assert widths[4] * 16 >= 0.99 * z.numel() * z.element_size()


def test_no_wide_access_to_shared_memory_off_its_alignment(emulator):
    """The emulator does not check shared memory, where a tile is misaligned as the logits are."""
    for offset in range(1, 8):
        z = torch.randn(64 * 10 + offset).half()[offset:].view(64, 10)
        y, perm = torch.randint(0, 10, (64,)), torch.randperm(64)
        emulator.count_traffic(True)
        (_, _, gradient), _ = loss_of(z, y, perm, 0.3)
        assert emulator.traffic()[z.data_ptr()].loads[4] > 0
        assert emulator.traffic()[gradient.data_ptr()].stores[4] == 0


def test_rows_whose_upstream_is_one_are_not_touched(emulator):
    for way in ("tile", "warp", "block", "cluster"):
        emulator.set_device(*WAYS[way][0])
        z = WAYS[way][2](torch.float32)
        y, perm = torch.randint(0, z.shape[1], z.shape[:1]), torch.randperm(len(z))
        for reduction in ("mean", "sum"):
            (_, stats, gradient), args = loss_of(z, y, perm, 0.3, reduction=reduction)
            before = gradient.clone()
            emulator.count_traffic(True)
            OPS.cross_entropy_rescale_(gradient, torch.ones(()), stats, z, *args)
            assert not {t.data_ptr() for t in (z, gradient, y, stats)} & set(emulator.traffic())
            assert torch.equal(gradient, before)
