"""Mixing and soft targets: the bits of the C++ kernels; a bad perm and bad labels."""

import pytest
import torch

from mmix_fast import reference
from mmix_fast.arithmetic import compute_dtype
from mmix_fast.triton import launch
from tests.support.cases import DTYPES, LAYOUTS, PERMS, expected_mix

TRITON, CPP = torch.ops.mmix_fast_triton, torch.ops.mmix_fast


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mixing_has_the_bits_of_cpp(size, layout, dtype):
    make, dim = LAYOUTS[layout]
    # The interpreter takes 30 ms a launch, so each case runs two permutations, together all.
    turn = list(LAYOUTS).index(layout) + DTYPES.index(dtype)
    perms = list(PERMS.values())
    for number, make_perm in enumerate((perms[turn % 6], perms[(turn + 3) % 6])):
        if number and (size == "large" or layout == "wide"):
            continue
        x = make(dtype)
        dim = dim % x.ndim
        perm, rows = make_perm(x.shape[dim]), x.shape[dim]
        lam = torch.rand(rows if turn % 3 else (), dtype=compute_dtype(dtype))
        if lam.ndim:
            lam[::3], lam[1::4] = 0, 1
        for adjoint in (False, True):
            want = CPP.mix(x, perm, lam, dim, adjoint)
            got = TRITON.mix(x, perm, lam, dim, adjoint)
            assert torch.equal(got, want) and got.stride() == want.stride()
        want = CPP.mix(x, perm, lam, dim, False)
        TRITON.mix_(x, perm, lam, dim)
        assert torch.equal(x, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_coefficients_of_0_and_1_keep_the_bits(size, dtype):
    x = torch.randn(6, 5).to(dtype)
    x[0] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1.0]).to(dtype)
    perm = torch.tensor([1, 2, 0, 4, 3, 5])
    lam = torch.tensor([1.0, 0.0, 1.0, 0.3, 0.0, 1.0], dtype=compute_dtype(dtype))
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    want = x.clone()
    want[1], want[4] = x[2], x[3]
    want[3] = expected_mix(x, perm, lam)[3]
    got = TRITON.mix(x, perm, lam, 0, False)
    assert torch.equal(got.view(bits), want.view(bits))
    TRITON.mix_(x, perm, lam, 0)
    assert torch.equal(x.view(bits), want.view(bits))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_second_batch_has_the_bits_of_cpp(dtype):
    """Forward and both gradients; groups of no, one and many rows; gaps, and three layouts."""
    perm, lam = torch.tensor([3, 1, 3, 3, 0, 1, 3]), torch.rand(7, dtype=compute_dtype(dtype))
    lam[0], lam[3] = 0, 1
    order, begin = perm.argsort(stable=True), torch.tensor([0, 1, 3, 3, 7])
    wide = torch.randn(7, 3, 5, 16).to(dtype)
    images = wide.contiguous(memory_format=torch.channels_last)
    for x in (wide, images, wide[..., 1::2, :9], wide[..., ::2]):
        other = torch.randn(4, *x.shape[1:]).to(dtype)
        for second in (other, other.contiguous(memory_format=torch.channels_last)):
            want = CPP.mix_other(x, second, perm, lam, 0)
            assert torch.equal(TRITON.mix_other(x, second, perm, lam, 0), want)
            mixed = torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x)
            TRITON.mix_other_(mixed, second, perm, lam, 0)
            assert torch.equal(mixed, want)
            got, sums = torch.empty_like(second), torch.empty_like(second)
            CPP.sum_rows_(sums, x, lam, order, begin, 0)
            TRITON.sum_rows_(got, x, lam, order, begin, 0)
            assert torch.equal(got, sums)
        want, got = torch.empty_like(x), torch.empty_like(x)
        CPP.sum_rows_(want, x, lam, None, None, 0)
        TRITON.sum_rows_(got, x, lam, None, None, 0)
        assert torch.equal(got, want)
        assert torch.equal(TRITON.mix_other(x, x, None, lam, 0), CPP.mix_other(x, x, None, lam, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bad_index_of_a_second_batch_poisons_its_row_alone(dtype):
    x, lam = torch.randn(6, 5).to(dtype), torch.tensor(0.3)
    fence = torch.full((7, 5), 123.0).to(dtype)
    other = fence[2:-2]
    other.copy_(torch.randn(3, 5))
    perm = torch.tensor([0, 3, -1, 2**62, 2, 2])
    want = TRITON.mix_other(x, other, perm.clamp(0, 2), lam, 0)
    want[1:4] = float("nan")
    got = TRITON.mix_other(x, other, perm, lam, 0)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    TRITON.mix_other_(x, other, perm, lam, 0)
    torch.testing.assert_close(x, want, rtol=0, atol=0, equal_nan=True)


BAD_PERMS = {
    "past the end": [1, 2, 3, 4, 5, 6, 7, 8, 9],
    "negative": [-1, 0, 1, 2, 3, 4, 5, 6, 7],
    "a cycle that does not close": [1, 0, 3, 3, 5, 4, 7, 6, 8],
    "all the same": [4] * 9,
    "chains beside cycles": [0, 2, 1, 4, -5, 6, 7, 8, 2],
    "huge": [2**62, -(2**63), 1, 2**31, 2**32, 6, 7, 5, 8],
}


@pytest.mark.parametrize("name", BAD_PERMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bad_index_poisons_its_row_alone(size, name, dtype):
    entries = BAD_PERMS[name]
    perm = torch.tensor(entries)
    good = torch.tensor([0 <= j < 9 and entries.count(j) == 1 for j in entries])
    fence = torch.full((13, 5), 123.0).to(dtype)
    x = fence[2:-2]
    x.copy_(torch.randn(9, 5))
    lam = torch.tensor(0.3)
    want = expected_mix(x, perm.clamp(0, 8), lam)
    want[~good] = float("nan")
    torch.testing.assert_close(
        TRITON.mix(x, perm, lam, 0, False), want, rtol=0, atol=0, equal_nan=True
    )
    back = torch.full_like(x, float("nan"))  # rows that no valid index names stay NaN
    for k in good.nonzero().flatten():
        back[perm[k]] = (lam * x[perm[k]].float() + (1 - lam) * x[k].float()).to(dtype)
    torch.testing.assert_close(
        TRITON.mix(x, perm, lam, 0, True), back, rtol=0, atol=0, equal_nan=True
    )
    soft = TRITON.mix_targets(torch.zeros(9, dtype=torch.int64), perm, lam, 4, 0.0, -100, dtype)
    assert torch.equal(soft.isnan().all(1), ~good) and torch.equal(soft.isnan().any(1), ~good)
    TRITON.mix_(x, perm, lam, 0)
    torch.testing.assert_close(x, want, rtol=0, atol=0, equal_nan=True)
    assert (fence[:2] == 123).all() and (fence[-2:] == 123).all()


@pytest.mark.parametrize("batch", [70, 130])
def test_cycles_longer_than_a_tile_of_rows(monkeypatch, batch):
    monkeypatch.setattr(launch, "SLAB_ROWS", 8)
    monkeypatch.setattr(launch, "WALK_ROWS", 16)
    for name in ("roll", "two_cycles", "random"):
        make_perm = PERMS[name]
        x, perm, lam = torch.randn(batch, 3), make_perm(batch), torch.rand(batch)
        want = expected_mix(x, perm, lam)
        TRITON.mix_(x, perm, lam, 0)
        assert torch.equal(x, want)


TARGETS = {
    "labels": lambda: torch.randint(-1, 5, (9,)),
    "maps of labels": lambda: torch.randint(-1, 5, (9, 3)),
    "float": lambda: torch.rand(9, 5),
    "half maps": lambda: torch.rand(9, 5, 3).half(),
    "double": lambda: torch.rand(9, 5).double(),
}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_targets_alone_and_in_mix_batch(size, kind, dtype):
    for eps in (0.0, 0.1):
        target, perm = TARGETS[kind](), torch.randperm(9)
        acc = torch.float64 if torch.float64 in (target.dtype, dtype) else torch.float32
        lam = torch.rand(9, dtype=acc)
        want = reference.mix_targets(
            target, perm, lam, num_classes=5, label_smoothing=eps, ignore_index=-1, dtype=dtype
        )
        options = (5, eps, -1, dtype)
        got = TRITON.mix_targets(target, perm, lam, *options)
        torch.testing.assert_close(got, want)
        x = torch.randn(9, 4, 3).to(dtype)
        mixed = expected_mix(x, perm, lam.to(compute_dtype(dtype)))
        assert torch.equal(TRITON.mix_batch_(x, target, perm, lam, *options), got)
        assert torch.equal(x, mixed)


def test_bad_labels_poison_their_entries(size):
    y, perm = torch.tensor([0, 7, -1, 2]), torch.tensor([1, 0, 3, 2])
    got = TRITON.mix_targets(y, perm, torch.tensor(0.5), 5, 0.0, -1, torch.float32)
    assert got.isnan().any(1).tolist() == [True, True, False, False]


IMAGES = {
    "contiguous": lambda: torch.randn(5, 2, 6, 7),
    "channels_last": lambda: torch.randn(5, 3, 4, 8).contiguous(memory_format=torch.channels_last),
    "gray, wide": lambda: torch.randn(4, 2, 3000),
    "transposed": lambda: torch.randn(4, 2, 6, 4).transpose(2, 3),
    "with holes": lambda: torch.randn(4, 3, 9, 12)[:, 1:, ::3, ::2],
}


@pytest.mark.parametrize("layout", IMAGES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cutmix_has_the_bits_of_cpp(size, layout, dtype):
    like = IMAGES[layout]()
    x = torch.empty_strided(like.shape, like.stride(), dtype=dtype).copy_(like)
    batch, height, width = x.shape[0], *x.shape[-2:]
    lam, perm = torch.rand(batch, dtype=compute_dtype(dtype)), torch.randperm(batch)
    for rows in (batch, 1):
        edges = [torch.randint(0, n + 1, (rows, 2)).sort().values for n in (height, width)]
        box = torch.cat(edges, 1) if rows > 1 else torch.cat(edges, 1)[0]
        want = x.clone(memory_format=torch.preserve_format)
        CPP.cutmix_(want, perm, box, lam)
        TRITON.cutmix_(x, perm, box, lam)
        assert torch.equal(x, want)


@pytest.mark.parametrize("name", ["roll", "two_cycles", "random", "bad"])
def test_cutmix_of_more_rows_than_a_slab_holds(monkeypatch, name):
    monkeypatch.setattr(launch, "SLAB_ROWS", 8)
    monkeypatch.setattr(launch, "WALK_ROWS", 16)
    x, lam, perm = torch.randn(70, 2, 5, 6), torch.rand(70), PERMS["random"](70)
    lam[3], lam[5] = 0, 1
    good = torch.ones(70, dtype=torch.bool)
    if name == "bad":
        perm[7], perm[40] = 2**40, perm[41]
        good[[7, 40, 41]] = False
    else:
        perm = PERMS[name](70)
    edges = [torch.randint(0, n + 1, (70, 2)).sort().values for n in (5, 6)]
    box = torch.cat(edges, 1)
    mixed = expected_mix(x, perm.clamp(0, 69), lam)
    mixed[~good] = float("nan")
    y, x_ = torch.arange(5)[:, None], torch.arange(6)
    top, bottom, left, right = box[:, :, None, None, None].unbind(1)
    want = torch.where((top <= y) & (y < bottom) & (left <= x_) & (x_ < right), mixed, x)
    TRITON.cutmix_(x, perm, box, lam)
    torch.testing.assert_close(x, want, rtol=0, atol=0, equal_nan=True)


def test_cutmix_poisons_inside_the_box_alone():
    x, perm, box = torch.randn(3, 1, 4, 4), torch.tensor([1, 1, 7]), torch.tensor([1, 3, 0, 2])
    want = x.clone()
    want[..., 1:3, 0:2] = float("nan")
    TRITON.cutmix_(x, perm, box, torch.tensor(0.5))
    torch.testing.assert_close(x, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("walks", [False, True], ids=["slab", "walk"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("bad", [False, True])
def test_a_paste_of_integers_leaves_bad_rows(monkeypatch, dtype, walks, bad):
    if walks:
        monkeypatch.setattr(launch, "SLAB_ROWS", 8)
        monkeypatch.setattr(launch, "WALK_ROWS", 16)
    info = torch.iinfo(dtype)
    for width in (16, 5):
        x = torch.randint(info.min, info.max, (40, 2, 4, width), dtype=dtype)
        perm, stays = torch.randperm(40), torch.zeros(40, dtype=torch.bool)
        if bad:
            perm[7], perm[20] = -3, perm[21]
            stays[[7, 20, 21]] = True
        for box in ([1, 3, 2, 5], [0, 4, 0, width], [2, 2, 0, 3]):
            top, bottom, left, right = box
            want = x.clone()
            partners = torch.where(stays, torch.arange(40), perm.clamp(0))
            want[..., top:bottom, left:right] = x[partners][..., top:bottom, left:right]
            TRITON.cutmix_(x, perm, torch.tensor(box), torch.zeros(()))
            assert torch.equal(x, want)
