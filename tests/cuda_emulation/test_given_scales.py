"""Factors of the mean that are given, and chunks of a batch whose gradient takes their place."""

import pytest
import torch
import torch.nn.functional as F

from tests.cuda_emulation.cross_entropy_checks import (
    OPS,
    WAYS,
    arguments,
    close,
    in_place_agrees,
    kernel_of,
    make,
    truth,
)
from tests.cuda_emulation.shard_checks import scales_of
from tests.support.cases import DTYPES, TOLERANCE

NAN = float("nan")


def acc_of(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["labels", "weighted", "capped", "probabilities"])
def test_the_batchs_own_factors_give_its_mean(emulator, way, kind):
    emulator.set_device(*WAYS[way][0])
    for number, dtype in enumerate(DTYPES):
        (z, y, perm, lam), kw = make(way, kind, dtype, per_sample=bool(number % 2))
        scales = scales_of(y, perm, lam, **kw)
        want, want_gradient = truth(z, y, perm, lam, torch.ones(()), **kw)
        args = arguments(y, perm, lam, scales=scales, **kw)
        emulator.launches()
        loss, stats, gradient = OPS.cross_entropy(z, *args, 1.0)
        (name,) = emulator.launches()  # none for the divisors
        assert kernel_of(way, kind) in name or dtype == torch.float64
        assert close(loss, want, TOLERANCE[loss.dtype])
        assert close(gradient, want_gradient, TOLERANCE[dtype])
        again = OPS.cross_entropy_backward(torch.ones_like(loss), stats, z, *args)
        assert torch.equal(again, gradient)
        assert in_place_agrees(z, args, loss, gradient)


@pytest.mark.parametrize("shape", [(6, 10), (6, 1001), (2, 5, 16, 24)], ids=str)
@pytest.mark.parametrize("probabilities", [False, True])
def test_each_factor_is_of_its_term(emulator, shape, probabilities):
    z, lam = torch.randn(shape), torch.tensor(0.25)
    rows = shape[:1] + shape[2:]
    y, y_b = (torch.rand(shape).softmax(1) for _ in "ab")
    if not probabilities:
        y, y_b = (torch.randint(0, shape[1], rows) for _ in "ab")
    scales = torch.tensor([2.0, 3.0, 5.0, 0], dtype=torch.float64)
    args = arguments(y, None, lam, target_b=y_b, z_loss=0.1, scales=scales)
    leaf = z.double().requires_grad_()
    own, other = (
        F.cross_entropy(leaf, t.double() if probabilities else t, reduction="sum") for t in (y, y_b)
    )
    # The blended targets of a row have one factor.
    factor = 2.0 if probabilities else 3.0
    want = 2 * 0.25 * own + factor * 0.75 * other + 5 * 0.1 * leaf.logsumexp(1).square().sum()
    (want_gradient,) = torch.autograd.grad(want, leaf)
    loss, stats, gradient = OPS.cross_entropy(z, *args, 1.0)
    assert close(loss, want.detach(), 3e-6) and close(gradient, want_gradient, 1e-5)
    backward = OPS.cross_entropy_backward(torch.tensor(2.0), stats, z, *args)
    assert close(backward, 2 * want_gradient, 1e-5)


@pytest.mark.parametrize("classes", [10, 1001])
def test_a_factor_that_is_nan_and_the_term_that_it_is_of(emulator, classes):
    z, y = torch.randn(4, classes), torch.tensor([1, 2, 3, 4])
    none = torch.full((4,), -100)
    perm = torch.arange(4)
    for lam, target_b, scales in (
        (1.0, y, [0.5, NAN, 0.5, 0]),
        (0.0, y, [NAN, 0.5, 0.5, 0]),
        (0.25, none, [0.5, NAN, 0.5, 0]),
    ):
        kw = {"label_smoothing": 0.1, "target_b": target_b}
        scales = torch.tensor(scales, dtype=torch.float64)
        args = arguments(y, None, torch.tensor(lam), scales=scales, **kw)
        want, want_gradient = truth(
            z, y, None, torch.tensor(lam), torch.tensor(0.5), reduction="sum", **kw
        )
        loss, _, gradient = OPS.cross_entropy(z, *args, 1.0)
        assert close(loss, want / 2, 3e-6) and close(gradient, want_gradient, 3e-6)
    # What is added makes the loss NaN, not its gradient.
    args = arguments(y, perm, torch.tensor(0.5), scales=torch.tensor([1.0, 1, 1, NAN]).double())
    loss, _, gradient = OPS.cross_entropy(z, *args, 1.0)
    assert loss.isnan() and gradient.isfinite().all()
    assert OPS.cross_entropy_(z, *args).isnan() and torch.equal(z, gradient)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_chunk_of_no_rows(emulator, reduction):
    emulator.launches()
    none = torch.zeros(0, dtype=torch.int64)
    for added in (0.0, NAN) if reduction == "mean" else ():
        scales = torch.tensor([1.0, 1, 1, added]).double()
        for target in (none, torch.zeros(0, 7)):
            args = arguments(target, none, torch.tensor(0.5), scales=scales)
            for loss in (
                OPS.cross_entropy(torch.zeros(0, 7), *args, 1.0)[0],
                OPS.cross_entropy_(torch.zeros(0, 7), *args),
            ):
                assert torch.equal(loss.isnan(), scales[3].isnan()) and not loss.nan_to_num()
                assert loss.shape == () and loss.dtype == torch.float32
    args = arguments(none, none, torch.tensor(0.5), reduction=reduction)
    loss = OPS.cross_entropy_(torch.zeros(0, 7), *args)
    assert loss.isnan() if reduction == "mean" else loss == 0
    assert emulator.launches() == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [11, 700, 1501])
@pytest.mark.parametrize("per_sample", [False, True])
def test_chunks_in_place_add_up_to_the_batch(emulator, dtype, classes, per_sample):
    batch = 9
    whole = torch.randn(batch, classes + 2).to(dtype)
    before = whole.clone()
    z = whole[:, 1:-1]  # rows with gaps, of any alignment
    y, perm = torch.randint(0, classes, (batch,)), torch.randperm(batch)
    y[::4] = -100
    lam = torch.rand(batch if per_sample else ()).to(acc_of(dtype))
    if per_sample:
        lam[1], lam[2] = 0, 1
    kw = {"weight": torch.rand(classes), "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 20.0}
    for options in ({}, {"weight": kw["weight"]}, {"z_loss": 0.01}, kw):
        z.copy_(before[:, 1:-1])
        want, want_gradient = truth(z, y, perm, lam, torch.ones(()), **options)
        scales, total = scales_of(y, perm, lam, **options), torch.zeros(())
        for first, end in ((0, 4), (4, 5), (5, 9)):
            own = lam[first:end] if per_sample else lam
            args = arguments(
                y[first:end], None, own, target_b=y[perm][first:end], scales=scales, **options
            )
            total = total + OPS.cross_entropy_(z[first:end], *args)
        assert close(total, want, TOLERANCE[lam.dtype])
        assert close(z, want_gradient, TOLERANCE[dtype])
        assert torch.equal(whole[:, [0, -1]], before[:, [0, -1]])


@pytest.mark.parametrize("way", [w for w in WAYS if w not in ("far_classes", "many_rows")])
@pytest.mark.parametrize("kind", ["labels", "capped"])
def test_in_place_with_masked_nan_and_ignored_rows(emulator, way, kind):
    emulator.set_device(*WAYS[way][0])
    z = WAYS[way][2](torch.float32)
    z = torch.cat([z] * 4)
    y = torch.randint(0, z.shape[1] - 3, z.shape[:1] + z.shape[2:])
    z[0, -3:], z[1, 1], z[2], z[3] = -float("inf"), NAN, -float("inf"), NAN
    y[3], y[-1] = -100, z.shape[1]  # ignored, out of range
    kw = {"softcap": 5.0, "z_loss": 0.1} if kind == "capped" else {}
    args = arguments(y, torch.arange(len(z)), torch.tensor(0.25), reduction="sum", **kw)
    loss, _, gradient = OPS.cross_entropy(z, *args, 1.0)
    assert OPS.cross_entropy_(z, *args).isnan() and loss.isnan()
    assert close(z, gradient.double(), 3e-6)
    assert (
        z[0].isfinite().all() and z[1].isnan().any() and (z[3] == 0).all() and z[-1].isnan().all()
    )
