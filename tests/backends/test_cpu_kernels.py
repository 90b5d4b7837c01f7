"""The C++ mixing kernels: instruction sets, threads, tiles, more than 2^31 elements."""

import pytest
import torch

import mmix_fast as m
from tests.support.cases import DTYPES, ISAS, expected_mix, run
from tests.support.special_lam import transposed

PERM = torch.tensor([1, 2, 0])


# From integers: torch's randn and sums differ between instruction sets.
SWEEP = """
import hashlib, torch, mmix_fast as m
torch.set_num_threads({threads}); torch.manual_seed(1)
for dt in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
    x = (torch.randint(-10**6, 10**6, (33, 5001)).double() / 999).to(dt)
    x[0, :3] = torch.tensor([float('inf'), 1e-7, 65504.]).to(dt)
    x[0, 40:43] = torch.tensor([float('nan'), 1e-39, -3e-40]).to(dt)
    lam = torch.randint(1, 999, (33,)).double() / 999
    m.mix_(x, torch.arange(33).roll(1), lam)
    y = m.mix(x, torch.arange(33).flip(0), .3)
    lam[::4], lam[1::4] = 0, 1
    z = torch.ops.mmix_fast.mix(x, torch.arange(33).roll(2), lam, 0, True)
    for t in (x, y, z):
        print(hashlib.sha256(t.view(torch.uint8).numpy().tobytes()).hexdigest())
"""


@pytest.mark.deep
def test_same_bits_on_every_isa_and_thread_count():
    runs = [run(SWEEP.format(threads=t), ATEN_CPU_CAPABILITY=isa) for t in (1, 2) for isa in ISAS]
    assert len({r.stdout for r in runs}) == 1 and runs[0].returncode == 0, runs[0].stderr


@pytest.mark.deep
def test_more_than_two_to_the_31_elements():
    x = torch.zeros(3, 2**30 + 8, dtype=torch.bfloat16)
    x[:, -1] = torch.tensor([1.0, 2.0, 4.0])
    m.mix_(x, PERM, 0.5)
    assert x[:, -1].tolist() == [1.5, 3.0, 2.5] and not x[:, :-1].any()


def test_bfloat16_rounds_every_kind_of_value_as_torch_does():
    # The instruction that rounds to bfloat16 gets subnormals and NaN wrong. Each special value is
    # tried alone in a row of others, and as a whole row.
    kinds = [1e-40, -3e-39, 1.2e-38, float("nan"), float("inf"), -0.0, 3.39e38, 1.00390625, 0.0]
    x = torch.randn(2 * len(kinds), 96).bfloat16()
    for k, value in enumerate(kinds):
        x[k, 11 * k % 96] = value
        x[k + len(kinds)] = value
    perm, lam = torch.arange(len(x)).roll(1), torch.full((len(x),), 0.5)
    want, got = expected_mix(x, perm, lam), m.mix(x, perm, lam)
    nan = want.isnan()
    assert torch.equal(got.isnan(), nan) and nan.any()
    assert torch.equal(got.view(torch.int16)[~nan], want.view(torch.int16)[~nan])


# Rows shorter than, equal to and longer than a vector, a tile and a chunk. From 16 MB on, results
# are stored past the caches, also at addresses that are not aligned.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(1000, 3), (64, 513), (1200, 513), (9, 16384), (7, 40001), (3, 70000), (5, 1700001)],
    ids=str,
)
@pytest.mark.parametrize("pairing", ["random", "flip", "roll"])
def test_rows_around_every_size_of_vector_tile_and_chunk(dtype, shape, pairing):
    if shape[1] > 10**6 and pairing != "random":
        pytest.skip("the large case once is enough")
    x = torch.randn(shape).to(dtype)
    perm = m.sample_mix(shape[0], 1.0, pairing=pairing).perm
    lam = torch.rand(shape[0], dtype=torch.float64)
    want = expected_mix(x, perm, lam)
    back = lam.clone()
    back[::3], back[1::3] = 0, 1  # rows of one term and of none
    adjoint = torch.ops.mmix_fast.mix(x, perm, back, 0, True)
    assert torch.equal(adjoint, transposed(x, perm, back))
    assert torch.equal(m.mix(x, perm, lam), want)
    assert torch.equal(m.mix_(x, perm, lam), want)
