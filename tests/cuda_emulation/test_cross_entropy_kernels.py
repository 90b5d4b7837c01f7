"""The loss kernels on code paths that tests of the public ops miss; bad labels and a bad perm."""

import pytest
import torch

from tests.cuda_emulation.cross_entropy_checks import (
    KINDS,
    OPS,
    WAYS,
    check,
    close,
    kernel_of,
    loss_of,
    make,
    truth,
)
from tests.support.cases import DTYPES, TOLERANCE

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_of_every_code_path(emulator, way, kind):
    emulator.launches()
    for number, dtype in enumerate(DTYPES):
        emulator.set_seed(number)
        reduction = ("mean", "none", "sum")[(number + len(kind)) % 3]
        assert check(emulator, way, kind, dtype, reduction, per_sample=bool(number % 2)), dtype
    names = emulator.launches()
    kernel = f"cross_entropy_{kernel_of(way, kind)}<"
    assert any(kernel in name for name in names)
    assert not any(kernel not in n for n in names if "s<__" in n)


@pytest.mark.parametrize("batch, classes", [(1, 4096), (64, 100), (8192, 10), (9000, 2)])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_forward_with_gradient_and_its_backward_are_one_launch_each(
    emulator, batch, classes, reduction
):
    y, perm = torch.randint(0, classes, (batch,)), torch.randperm(batch)
    z = torch.randn(batch, classes)
    launches = 2 if reduction == "mean" and batch > 8192 else 1
    for weight in (None, torch.rand(classes)):
        emulator.launches()
        (loss, stats, gradient), args = loss_of(z, y, perm, 0.3, reduction=reduction, weight=weight)
        assert len(emulator.launches()) == launches
        OPS.cross_entropy_rescale_(gradient, torch.ones_like(loss), stats, z, *args)
        assert len(emulator.launches()) == launches


def test_without_a_ticket_blocks_are_counted_in_zeroed_memory(emulator):
    (z, y, perm, lam), _ = make("many_rows", "labels", torch.float32, False)
    want = truth(z, y, perm, lam, torch.ones(()))

    def zeroed():
        with torch.profiler.profile() as profile:
            loss, _, gradient = loss_of(z, y, perm, lam)[0]
        for got, right in zip((loss, gradient), want, strict=True):
            assert close(got, right, TOLERANCE[torch.float32])
        return sum(event.name == "aten::zero_" for event in profile.events())

    zeroed()  # the usual stream has a ticket before this test takes all
    usual = emulator.set_stream(10**6)
    try:
        for number in range(4):  # as many streams as there are tickets
            emulator.set_stream(10**6 + number)
            zeroed()
        emulator.set_stream(2 * 10**6)
        assert zeroed() == 2  # for the divisors, and for the sum of the losses
    finally:
        emulator.set_stream(usual)


def test_the_same_bits_in_any_order_of_threads_and_blocks(emulator):
    for way in ("tile", "warp_odd", "block", "cluster", "many_rows", "map_of_lanes"):
        device, _, make = WAYS[way]
        emulator.set_device(*device)
        z = make(torch.float32)
        rows = z.shape[:1] + z.shape[2:]
        y, perm = torch.randint(0, z.shape[1], rows), torch.randperm(len(z))
        results = []
        for seed in range(3):
            emulator.set_seed(seed)
            results.append(loss_of(z, y, perm, 0.3, label_smoothing=0.1)[0])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), way


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [10, 700, 1500])
def test_every_alignment(emulator, dtype, classes):
    width = 16 // dtype.itemsize
    for offset in range(width + 1):
        for extra in range(2):
            whole = torch.randn(5 * (classes + extra) + offset).to(dtype)
            before = whole.clone()
            z = whole[offset:].view(5, classes + extra)[:, :classes]
            y, perm = torch.randint(0, classes, (5,)), torch.randperm(5)
            lam = torch.tensor(0.3, dtype=torch.float64).to(torch.float32)
            (loss, stats, gradient), args = loss_of(z, y, perm, lam)
            want, want_gradient = truth(z, y, perm, lam, torch.ones(()))
            assert close(loss, want, TOLERANCE[loss.dtype])
            assert close(gradient, want_gradient, TOLERANCE[dtype])
            OPS.cross_entropy_backward_(torch.ones_like(loss), stats, z, *args)
            assert close(z, want_gradient, TOLERANCE[dtype])
            outside = torch.ones_like(whole, dtype=torch.bool)
            outside[offset:].view(5, classes + extra)[:, :classes] = False
            assert torch.equal(whole[outside], before[outside])


def test_more_rows_than_a_grid_has_in_y(emulator):
    z, perm = torch.randn(70_001, 3), torch.randperm(70_001)
    y = torch.randint(0, 3, (70_001,))
    for way in (z, torch.randn(2, 3, 40_000)):
        rows = way.shape[:1] + way.shape[2:]
        target = y[: rows.numel()].reshape(rows) if len(rows) == 1 else torch.randint(0, 3, rows)
        order = perm if len(rows) == 1 else torch.tensor([1, 0])
        (loss, _, gradient), _ = loss_of(way, target, order, 0.25)
        want, want_gradient = truth(way, target, order, torch.tensor(0.25), torch.ones(()))
        assert close(loss, want, 3e-6) and close(gradient, want_gradient, 3e-6)


BAD_WAYS = ("tile", "tile_of_warps", "warp", "block", "cluster", "segments")


@pytest.mark.parametrize("way", BAD_WAYS)
@pytest.mark.parametrize("kind, bad", [("labels", "C"), ("capped", -1), ("labels", 2**32)])
def test_a_bad_label_poisons_its_rows_and_no_other(emulator, way, kind, bad):
    device, _, make = WAYS[way]
    emulator.set_device(*device)
    z = make(torch.float32)
    n, classes = z.shape
    y, perm = torch.randint(0, classes, (n,)), torch.arange(n).roll(1)
    kw = {"reduction": "none"} | ({"softcap": 5.0} if kind == "capped" else {})
    want, want_gradient = truth(z, y, perm, torch.tensor(0.25), torch.ones(()), **kw)
    y[0] = classes if bad == "C" else bad  # row 0 is the partner of row 1
    (rows, stats, gradient), args = loss_of(z, y, perm, 0.25, **kw)
    again = OPS.cross_entropy_backward(torch.ones(n), stats, z, *args)
    assert rows[:2].isnan().all() and gradient[:2].isnan().all() and again[:2].isnan().all()
    assert close(rows[2:], want[2:], 3e-6)
    assert close(gradient[2:], want_gradient[2:], 3e-6) and close(
        again[2:], want_gradient[2:], 3e-6
    )
    assert loss_of(z, y, perm, 0.25)[0][0].isnan()
    assert loss_of(z, y, None, 0.25, target_b=y.clamp(0, 1))[0][0].isnan()


@pytest.mark.parametrize("way", BAD_WAYS)
@pytest.mark.parametrize("probabilities, bad", [(False, "B"), (True, -1), (False, 2**32)])
def test_a_bad_perm_entry_poisons_its_row_and_no_other(emulator, way, probabilities, bad):
    device, _, make = WAYS[way]
    emulator.set_device(*device)
    z = make(torch.float32)
    n, classes = z.shape
    y = torch.rand(n, classes) if probabilities else torch.randint(0, classes, (n,))
    perm = torch.arange(n).roll(1)
    lam, kw = torch.tensor(0.25), {"reduction": "none"}
    want, want_gradient = truth(z, y, perm, lam, torch.ones(()), **kw)
    perm[1] = n if bad == "B" else bad
    (rows, stats, gradient), args = loss_of(z, y, perm, lam, **kw)
    again = OPS.cross_entropy_backward(torch.ones(n), stats, z, *args)
    good = torch.arange(n) != 1
    assert rows[1].isnan() and gradient[1].isnan().all() and again[1].isnan().all()
    assert close(rows[good], want[good], 3e-6)
    assert close(gradient[good], want_gradient[good], 3e-6)
    assert close(again[good], want_gradient[good], 3e-6)
    assert loss_of(z, y, perm, lam)[0][0].isnan()


@pytest.mark.parametrize("way", [w for w in WAYS if w not in ("far_classes", "many_rows")])
@pytest.mark.parametrize("kind", ["labels", "capped"])
def test_masked_nan_infinite_and_ignored_rows(emulator, way, kind):
    emulator.set_device(*WAYS[way][0])
    z = WAYS[way][2](torch.float32)
    if len(z) < 5:
        z = torch.cat([z] * 3)
    n, classes = z.shape[:2]
    y = torch.randint(0, classes - 3, z.shape[:1] + z.shape[2:])
    perm, lam = torch.arange(n), torch.tensor(0.25)
    z[0, classes - 3 :] = -INF  # masked classes: the last ones, and whole vectors of a row
    z[0, : classes // 2] = -INF
    y[0] = classes // 2
    z[1, 1] = NAN
    z[2] = -INF
    z[3, 2] = INF
    z[4] = NAN
    y[4] = -100
    kw = {"reduction": "none"} | ({"softcap": 5.0, "z_loss": 0.1} if kind == "capped" else {})
    (rows, stats, gradient), args = loss_of(z, y, perm, lam, **kw)
    want, want_gradient = truth(z, y, perm, lam, torch.ones(()), **kw)
    again = OPS.cross_entropy_backward(torch.ones_like(rows), stats, z, *args)
    for got in (gradient, again):
        assert (
            (got[4] == 0).all() and got[0].isfinite().all() and (got[0, classes - 3 :] == 0).all()
        )
        assert got[1].isnan().all() and got[2].isnan().all()
        assert close(got[5:], want_gradient[5:], 3e-6) and close(got[0], want_gradient[0], 3e-6)
    assert (rows[4] == 0).all() and (stats[-1].isfinite()).all()
    assert close(rows, want, 3e-6)


def test_an_empty_batch_launches_nothing(emulator):
    none, lam = torch.zeros(0, dtype=torch.int64), torch.tensor(0.3)
    z = torch.zeros(0, 4)
    emulator.launches()
    for reduction, value in (("mean", NAN), ("sum", 0.0)):
        (loss, stats, gradient), args = loss_of(z, none, none, lam, reduction=reduction)
        assert torch.equal(loss.nan_to_num(7), torch.tensor(value).nan_to_num(7))
        assert gradient.shape == z.shape and stats.shape == (0, 2)
        assert OPS.cross_entropy_backward(loss, stats, z, *args).shape == z.shape
    assert loss_of(z, none, none, torch.rand(0), reduction="none")[0][0].shape == (0,)
    assert loss_of(z, torch.zeros(0, 4), none, lam)[0][0].isnan()
    assert emulator.launches() == []


def test_float_targets_and_weights_of_every_dtype_and_layout(emulator):
    for layout in ("dense", "pixels", "strided"):
        shape = (4, 9, 6) if layout == "pixels" else (4, 700)
        z, perm, lam = torch.randn(shape), torch.tensor([1, 2, 3, 0]), torch.tensor(0.3)
        for kind in DTYPES:
            t = torch.rand(shape).to(kind)
            if layout == "strided":
                t = torch.rand(shape[::-1]).to(kind).t()
            b = torch.rand(shape)
            for kw in ({}, {"target_b": b}, {"weight": torch.rand(shape[1])}):
                order = None if "target_b" in kw else perm
                kw["label_smoothing"] = 0.1
                (loss, _, gradient), _ = loss_of(z, t, order, lam, **kw)
                if "target_b" in kw:
                    kw["target_b"] = b.double()
                want, want_gradient = truth(z, t, order, lam, torch.ones(()), **kw)
                assert close(loss, want, 3e-6) and close(gradient, want_gradient, 3e-6)
