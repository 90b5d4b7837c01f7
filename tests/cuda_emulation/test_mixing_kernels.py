"""The mixing kernels on paths that tests of the public ops miss: every code path, random thread
orders, indices out of range."""

import pytest
import torch

from tests.cuda_emulation import emulation
from tests.cuda_emulation.mixing_checks import (
    BITS,
    CUTMIX,
    H100,
    OPS,
    WAYS,
    channels_last,
    check,
    check_paste,
    check_targets,
    links,
    noise,
    same,
    truth,
)
from tests.support.cases import DTYPES, PERMS, expected_mix


@pytest.fixture(scope="module")
def emulator():
    return emulation.load()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_of_every_way(emulator, way, dtype):
    emulator.launched()
    for number, make_perm in enumerate(PERMS.values()):
        emulator.set_seed(number)
        assert check(emulator, way, dtype, make_perm, per_sample=bool(number % 2))
    mixing = [r for r in emulator.launched() if "mix_targets" not in r.name]
    kernel = "mix_gather" if "gather" in way else "mix_slab"
    assert all(kernel in r.name for r in mixing)
    assert "aligned" not in way or any("mix_slab_aligned" in r.name for r in mixing)
    # In place, all blocks of a gather run together; out of place, if claims are in global memory.
    if WAYS[way][0][0] > 1 and "gather" in way:
        together = {r.cluster == r.blocks > 1 for r in mixing}
        assert together == ({True} if way.endswith("global") else {True, False})


@pytest.mark.parametrize("way", WAYS)
def test_bits_of_cpp_in_random_orders(emulator, way):
    device, shape, view = WAYS[way]
    emulator.set_device(*device)
    whole = torch.randn(shape).bfloat16()
    x = view(whole)
    perm, lam = torch.randperm(x.shape[0]), torch.tensor(0.37)
    want = torch.ops.mmix_fast.mix(x, perm, lam, 0, False)
    for seed in range(5):
        emulator.set_seed(seed)
        got = view(whole.clone())
        OPS.mix_(got, perm, lam, 0)
        assert torch.equal(got, want)
    emulator.set_device(*H100)


BAD_PERMS = {
    "too_large": lambda n: torch.arange(n).roll(1).index_fill(0, torch.tensor([1, n - 1]), n),
    "negative": lambda n: torch.arange(n).flip(0).index_fill(0, torch.tensor([0, 3]), -1),
    "huge": lambda n: torch.randperm(n).index_fill(0, torch.tensor([2]), 2**62),
    "minus_huge": lambda n: torch.randperm(n).index_fill(0, torch.tensor([2]), -(2**62)),
    "low_word_in_range": lambda n: torch.randperm(n).index_fill(0, torch.tensor([4]), 2**32 + 1),
    "twice": lambda n: torch.randperm(n).index_fill(0, torch.tensor([5, 7]), 6),
    "all_the_same": lambda n: torch.full((n,), 3),
    "rho": lambda n: (torch.arange(n) + 1).clamp(max=n - 1),
    "noise": noise,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", BAD_PERMS)
def test_bad_perm_poisons_its_rows_alone(emulator, way, bad):
    assert check(emulator, way, torch.float32, BAD_PERMS[bad])


@pytest.mark.parametrize("way", ["slab_odd", "slab_aligned", "gather", "gather_global"])
def test_lam_of_one_in_place_writes_nothing_but_bad_rows(emulator, way):
    device, shape, view = WAYS[way]
    emulator.set_device(*device)
    x = view(torch.randn(shape))
    perm = torch.randperm(x.shape[0])
    before = x.clone()
    emulator.count_traffic(True)
    OPS.mix_(x, perm, torch.tensor(1.0), 0)
    traffic = emulator.traffic()
    emulator.count_traffic(False)
    assert x.data_ptr() not in traffic or traffic[x.data_ptr()].stored_sectors == 0
    assert torch.equal(x, before)
    perm[3] = -1
    OPS.mix_(x, perm, torch.tensor(1.0), 0)
    assert x[3].isnan().all() and x.isnan().sum() == x[3].numel()
    emulator.set_device(*H100)


def test_lam_of_one_in_place_reads_little(emulator):
    """Of a slab the first loads, which do not wait for lam; of a gather nothing."""
    for batch, share in ((64, 0.2), (2000, 0)):
        emulator.set_device(2, H100[1])
        x = torch.randn(batch, 2**20 // batch)
        emulator.count_traffic(True)
        OPS.mix_(x, torch.randperm(batch), torch.tensor(1.0), 0)
        traffic = emulator.traffic().get(x.data_ptr())
        emulator.count_traffic(False)
        emulator.set_device(*H100)
        assert (32 * traffic.loaded_sectors if traffic else 0) <= share * x.nbytes


@pytest.mark.parametrize("bad", BAD_PERMS)
@pytest.mark.parametrize("dtype", BITS.values(), ids=str)
def test_a_bad_perm_leaves_its_rows_of_integers(emulator, dtype, bad):
    for options in CUTMIX:
        assert check_paste(emulator, dtype, BAD_PERMS[bad], *options)


def test_boxes_past_the_edge_are_clipped(emulator):
    """Also where an edge times the channels exceeds 64 bits."""
    for view in (lambda t: t, channels_last):
        x = view(torch.randint(0, 256, (3, 3, 4, 16), dtype=torch.uint8))
        for box in ([-5, 3, -(2**62), 2**62], [0, 2**62, 7, 2**63 - 1], [0, 4, 2**62, 2**62 + 5]):
            want, perm = x.clone(), torch.tensor([1, 2, 0])
            top, bottom, left, right = (min(max(edge, 0), 16) for edge in box)
            want[..., top:bottom, left:right] = x[perm][..., top:bottom, left:right]
            OPS.cutmix_(x, perm, torch.tensor(box), torch.zeros(()))
            assert torch.equal(x, want)


def test_zero_coefficients_of_single_rows(emulator):
    for way in WAYS:
        device, shape, view = WAYS[way]
        emulator.set_device(*device)
        x = view(torch.randn(shape))
        n = x.shape[0]
        x[0] = float("inf")
        x[1] = float("nan")
        perm, lam = torch.arange(n).flip(0), torch.rand(n)
        lam[0], lam[n - 1], lam[1], lam[n - 2] = 0, 1, 0, 1
        want = truth(x, perm, lam, 1 - lam)
        got = OPS.mix(x, perm, lam, 0, False)
        OPS.mix_(x, perm, lam, 0)
        assert same(got, want) and same(x, want) and want[:2].isfinite().all()
    emulator.set_device(*H100)


@pytest.mark.parametrize("batch, shared", [(2, 227), (1280, 38)])  # kernels: slab, gather
def test_the_adjoint_of_more_dimensions_than_a_kernel_takes(emulator, batch, shared):
    """The op makes a dense copy of g first."""
    g = torch.randn([batch] + [3] * 9)[(slice(None), *[slice(0, 2)] * 9)].permute(
        0, *range(9, 0, -1)
    )
    emulator.set_device(2, shared * 1024)
    perm = torch.arange(batch) ^ 1
    for pair in ([0.25, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]):
        lam = torch.tensor(pair * (batch // 2))
        assert same(OPS.mix(g, perm, lam, 0, True), truth(g, perm, lam, (1 - lam)[perm]))
    emulator.set_device(*H100)


@pytest.mark.parametrize("batch, columns", [(1, 7), (2, 100_003), (65_600, 3), (70_000, 1)])
def test_extreme_shapes(emulator, batch, columns):
    x, perm, lam = torch.randn(batch, columns), torch.randperm(batch), torch.tensor(0.3)
    want = expected_mix(x, perm, lam)
    assert torch.equal(OPS.mix(x, perm, lam, 0, False), want)
    OPS.mix_(x, perm, lam, 0)
    assert torch.equal(x, want)


def test_more_dimensions_than_a_kernel_takes(emulator):
    whole = torch.randn([3] * 10 + [2])
    x = whole[..., 0].permute(*range(9, -1, -1))[(slice(0, 2),) * 10]
    perm, lam = torch.tensor([1, 0]), torch.tensor(0.3)
    want = expected_mix(x, perm, lam)
    assert torch.equal(OPS.mix(x, perm, lam, 0, False), want)
    OPS.mix_(x, perm, lam, 0)
    assert torch.equal(x, want)


@pytest.mark.parametrize("offset", range(9))
@pytest.mark.parametrize("row", [64, 65, 72, 1000, 1003])
def test_every_alignment(emulator, offset, row):
    n, lam = 5, torch.rand(5)
    perm = torch.randperm(n)
    whole = torch.randn(n * row + offset).half()
    x = whole[offset:].view(n, row)
    before = whole[:offset].clone()
    want = expected_mix(x, perm, lam)
    assert torch.equal(OPS.mix(x, perm, lam, 0, False), want)  # out is aligned, x is not
    OPS.mix_(x, perm, lam, 0)
    assert torch.equal(x, want) and torch.equal(whole[:offset], before)


@pytest.mark.parametrize("out", DTYPES, ids=str)
@pytest.mark.parametrize("source", ["labels", *DTYPES], ids=str)
@pytest.mark.parametrize("shape", [(6, 11), (5, 3, 7), (3, 3000)])
def test_targets_of_every_dtype(emulator, out, source, shape):
    perm, lam = torch.randperm(shape[0]), torch.rand(shape[0])
    if source == "labels":
        target = torch.randint(0, shape[1], shape[:1] + shape[2:])
        target.view(-1)[1] = -100
    else:
        target = torch.rand(shape).to(source)
    lam = lam.double() if torch.float64 in (out, source) else lam
    args = (perm, lam, shape[1], 0.1, -100, out)
    want = torch.ops.mmix_fast.mix_targets(target, *args)
    assert torch.equal(OPS.mix_targets(target, *args), want)
    for dtype in DTYPES:
        emulator.launches()
        x = torch.randn(shape[0], 40).to(dtype)
        mixed = expected_mix(
            x, perm, lam.to(torch.float64 if dtype == torch.float64 else torch.float32)
        )
        assert torch.equal(OPS.mix_batch_(x, target, *args), want)
        assert torch.equal(x, mixed)
        wide = torch.float64 in (out, source, dtype)
        assert len(emulator.launches()) == (2 if wide else 1)


def test_bad_labels_poison_what_they_count_for(emulator):
    y = torch.tensor([0, 9, -1, 2, 2**40])
    perm, lam = torch.tensor([1, 2, 3, 0, 4]), torch.tensor([0.5, 0.5, 0.0, 0.5, 0.5])
    got = OPS.mix_targets(y, perm, lam, 3, 0.0, -100, torch.float32)
    assert got.isnan().all(1).tolist() == [True, True, False, False, True]
    assert got[2].tolist() == [0, 0, 1] and got[3].tolist() == [0.5, 0, 0.5]
    for bad in BAD_PERMS.values():
        perm = bad(12)
        got = OPS.mix_targets(
            torch.arange(12), perm, torch.tensor(0.5), 12, 0.0, -100, torch.float32
        )
        assert torch.equal(got.isnan().all(1), links(perm, False) < 0)


def test_targets_whose_tables_do_not_fit(emulator):
    for shared in (H100[1], 16):
        assert check_targets(emulator, torch.float32, shared)


def test_empty(emulator):
    none = torch.zeros(0, dtype=torch.int64)
    lam = torch.tensor(0.3)
    emulator.launches()
    assert OPS.mix(torch.zeros(0, 3), none, lam, 0, False).shape == (0, 3)
    OPS.mix_(torch.zeros(2, 0), torch.tensor([1, 0]), lam, 0)
    assert OPS.mix_targets(none, none, lam, 4, 0.0, -100, torch.float32).shape == (0, 4)
    soft = OPS.mix_batch_(torch.zeros(0, 3), none, none, lam, 4, 0.0, -100, torch.float32)
    assert soft.shape == (0, 4) and emulator.launches() == []
