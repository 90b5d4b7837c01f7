"""How many bytes the mixing kernels move: 32-byte sectors counted for each access of a warp."""

import pytest
import torch

from tests.cuda_emulation import emulation
from tests.cuda_emulation.mixing_checks import H100, OPS

DEVICES = {
    "H100": H100,
    "A100": (108, 163 * 1024, 0),  # the last: no clusters
    "RTX 4090": (128, 99 * 1024, 0),
    "T4": (40, 64 * 1024, 0),
}


@pytest.fixture(scope="module")
def emulator():
    e = emulation.load()
    yield e
    e.count_traffic(False)
    e.set_device(*H100)


def moved(emulator, *tensors, distinct=False):
    """Bytes of sectors over the bytes of the tensors: (of these tensors, of everything).

    With ``distinct``, a sector counts once: a gather reads it again as another row's partner, while
    it is in the L2 cache (a round of tiles is smaller than that).
    """
    counted = emulator.traffic()
    total = {
        p: 32 * (t.distinct_sectors if distinct else t.loaded_sectors + t.stored_sectors)
        for p, t in counted.items()
    }
    own = sum(total[p] for p in {t.data_ptr() for t in tensors})
    compulsory = 2 * tensors[0].numel() * tensors[0].element_size()
    return own / compulsory, sum(total.values()) / compulsory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("odd", [False, True], ids=["aligned", "odd"])
@pytest.mark.parametrize(
    "device, batch",
    # Every code path on an H100; on the others, batches for which less shared memory changes it.
    [("H100", b) for b in (2, 17, 128, 1000, 4096)]
    + [("A100", 4096), ("RTX 4090", 1000), ("RTX 4090", 4096), ("T4", 1000), ("T4", 4096)],
)
def test_mixing_reads_once_and_writes_once(emulator, batch, dtype, odd, device):
    emulator.set_device(*DEVICES[device])
    elements = max(2**17 // batch, 128) // 128 * 128 + odd
    x = torch.randn(batch, elements).to(dtype)
    perm, lam = torch.randperm(batch), torch.tensor(0.3)
    limit = 1.3 if odd else 1.05
    # Every block reads perm: that stays in the L2 cache. At 4096 rows of half a kilobyte it is a
    # quarter of the traffic.
    limit_of_all = limit + (0.15 if batch < 4096 else 0.3)
    for mode in ("out", "in", "adjoint"):
        emulator.count_traffic(True)
        emulator.launches()
        if mode == "in":
            OPS.mix_(x, perm, lam, 0)
            out = x
        else:
            out = OPS.mix(x, perm, lam, 0, mode == "adjoint")
        # Where a batch does not fit, a gather reads each row again as another's partner.
        gathers = "mix_gather" in emulator.launches()[-1]
        assert not (gathers and batch <= 128)
        own, everything = moved(emulator, x, out, distinct=gathers)
        assert own <= limit and everything <= limit_of_all, (own, everything, mode)
        # A warp's 64 bytes of odd bfloat16 rows touch three sectors instead of two, its last 2 one.
        again = (2.7 if odd else 1.5 * limit) if gathers else limit
        assert moved(emulator, x, out)[0] <= again


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(2, 40_000), (128, 1000), (1000, 128), (128, 1001)])
def test_a_second_batch_is_read_once(emulator, shape, dtype):
    """x and other are read and x is written: three passes; a gradient is two."""
    emulator.set_device(*H100)
    x, other = (torch.randn(shape).to(dtype) for _ in range(2))
    perm, lam = torch.randperm(shape[0]), torch.tensor(0.3)
    order, begin = perm.argsort(), torch.arange(shape[0] + 1)
    out = torch.empty_like(x)
    calls = {
        "mix_other_": ((x, other), lambda: OPS.mix_other_(x, other, perm, lam, 0), 3),
        "sum_rows_": ((x, out), lambda: OPS.sum_rows_(out, x, lam, order, begin, 0), 2),
        "one row each": ((x, out), lambda: OPS.sum_rows_(out, x, lam, None, None, 0), 2),
    }
    odd = shape[1] % 2
    for name, (tensors, call, passes) in calls.items():
        emulator.count_traffic(True)
        call()
        # A warp's 64 bytes of odd bfloat16 rows touch three sectors instead of two; its 512 bytes
        # of rows of 2000 bytes touch 17 instead of 16, in every other row.
        once, all_sectors = (moved(emulator, *tensors, distinct=d)[0] * 2 / passes for d in (1, 0))
        assert once <= (1.3 if odd else 1.01) and all_sectors <= (1.6 if odd else 1.05), name
        widths = emulator.traffic()[x.data_ptr()].loads  # of 1, 2, 4, 8, 16 bytes
        assert odd or sum(widths[:4]) == 0


@pytest.mark.parametrize(
    "shape, view", [((64, 3, 32, 32), "channels_last"), ((4, 64, 512), "dim1")]
)
def test_channels_last_and_dim_1_move_no_more(emulator, shape, view):
    emulator.set_device(*H100)
    x = torch.randn(shape).bfloat16()
    if view == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    dim = int(view == "dim1")
    emulator.count_traffic(True)
    OPS.mix_(x, torch.randperm(shape[dim]), torch.tensor(0.3), dim)
    assert moved(emulator, x)[0] <= 1.05


@pytest.mark.parametrize("odd", [0, 1])
def test_nearly_every_access_is_16_bytes_wide(emulator, odd):
    x = torch.randn(64, 4096 + odd).half()
    emulator.count_traffic(True)
    OPS.mix_(x, torch.randperm(64), torch.tensor(0.3), 0)
    traffic = emulator.traffic()[x.data_ptr()]
    for widths in (traffic.loads, traffic.stores):  # of 1, 2, 4, 8, 16 bytes
        assert widths[0] == widths[2] == widths[3] == 0
        assert widths[4] * 16 >= (1 - 0.05 * odd) * x.numel() * 2
    assert odd or traffic.loads[1] == traffic.stores[1] == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_a_paste_moves_the_box_in_vectors(emulator, dtype, last):
    x = torch.randint(0, 256, (64, 3, 32, 96)).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    perm = torch.randperm(64)
    for left, right in ((0, 96), (32, 64), (30, 67)):
        emulator.count_traffic(True)
        OPS.cutmix_(x, perm, torch.tensor([4, 20, left, right]), torch.zeros(()))
        traffic = emulator.traffic()[x.data_ptr()]
        lines, unit = (64 * 16, 3 * x.element_size()) if last else (64 * 16 * 3, x.element_size())
        sectors = lines * (-(-right * unit // 32) - left * unit // 32)
        assert traffic.stored_sectors <= 1.05 * sectors
        # A vector that is partly inside is read from its own row too: two at most in each line.
        assert traffic.loaded_sectors <= 1.05 * (sectors + 2 * lines * (left == 30))
        assert traffic.loads[:4] == traffic.stores[:4] == [0, 0, 0, 0]


def test_targets_are_written_once_in_full_vectors(emulator):
    y = torch.randint(0, 1000, (128,))
    emulator.count_traffic(True)
    out = OPS.mix_targets(y, torch.randperm(128), torch.rand(128), 1000, 0.1, -100, torch.float32)
    traffic = emulator.traffic()[out.data_ptr()]
    assert traffic.loaded_sectors == 0
    assert 32 * traffic.stored_sectors <= 1.05 * out.numel() * 4
    assert traffic.stores[4] * 16 == out.numel() * 4


def test_the_counter_counts(emulator):
    """A row of 32 float32, 4 bytes past a boundary: 5 sectors each way instead of 4."""
    whole = torch.randn(2 * 33 + 1)
    x = whole[1:].view(2, 33)[:, :32]
    emulator.count_traffic(True)
    OPS.mix_(x, torch.tensor([1, 0]), torch.tensor(0.3), 0)
    traffic = emulator.traffic()[x.data_ptr()]
    shifts = [(p % 32) // 4 for p in (x.data_ptr(), x.data_ptr() + 33 * 4)]
    spans = [-(-(s + 32) // 8) for s in shifts]
    assert traffic.loaded_sectors >= sum(spans) and traffic.stored_sectors >= sum(spans)
    assert traffic.loads[2] == traffic.stores[2] > 0
