"""Float targets and class weights in the tails of rows, and terms with coefficient 0."""

import pytest
import torch

from tests.cuda_emulation.cross_entropy_checks import (
    CALM,
    CLUSTERS,
    OPS,
    SEGMENTS,
    arguments,
    close,
    truth,
)
from tests.support.cases import DTYPES, TOLERANCE

INF, NAN = float("inf"), float("nan")
# Rows that leave a tail of every length for vectors of 2, 4 and 8; rows shorter and longer than a
# warp; rows for the tile kernel and for the row kernel.
TAILS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 255, 257, 520, 1023, 1025]
FAR = [6000, 6001]  # several segments, or several blocks, on devices with little shared memory


def both(z, t, perm, lam, **kw):
    """((loss, gradient), the expected pair). The backward op must give the same gradient."""
    args = arguments(t, perm, lam, reduction="none", **kw)
    loss, stats, gradient = OPS.cross_entropy(z, *args, 1.0)
    again = OPS.cross_entropy_backward(torch.ones_like(loss), stats, z, *args)
    assert torch.equal(again.nan_to_num(7.5), gradient.nan_to_num(7.5))
    for name in ("target_b", "weight"):
        if kw.get(name) is not None and kw[name].is_floating_point():
            kw[name] = kw[name].double()
    return (loss, gradient), truth(z, t, perm, lam, torch.ones(()), reduction="none", **kw)


def agree(z, got, want):
    return close(got[0], want[0], TOLERANCE[got[0].dtype]) and close(
        got[1], want[1], TOLERANCE[z.dtype]
    )


def off(t, shift):
    """A copy of t that starts `shift` elements past a 16-byte boundary."""
    whole = t.new_empty(t.numel() + shift)
    return whole[shift:].view(t.shape).copy_(t)


@pytest.mark.parametrize("classes", TAILS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tail(emulator, classes, dtype):
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    perm, lam = torch.tensor([1, 2, 3, 4, 0]), torch.tensor([0.3, 0.0, 1.0, 0.6, 0.5]).to(acc)
    for number, kind in enumerate(DTYPES):
        z = torch.randn(5, classes).to(dtype)
        t = off(torch.rand(5, classes).to(kind), number)
        w = torch.rand(classes).to(dtype if number % 2 else acc)
        for kw in ({}, {"weight": w, "label_smoothing": 0.1}, {"softcap": 3.0, "z_loss": 0.1}):
            assert agree(z, *both(z, t, perm, lam, **kw)), (kind, kw)
        other = off(torch.rand(5, classes).to(DTYPES[-number]), 1)
        assert agree(z, *both(z, t, None, lam, target_b=other, weight=w)), kind
        y = torch.randint(0, classes, (5,))
        assert agree(z, *both(z, y, perm, lam, weight=w, label_smoothing=0.1)), kind


DEEP = (2, 110 * 1024, 1)  # several blocks share a row, and each lane holds several vectors of it


@pytest.mark.parametrize(
    "device, classes",
    [(d, c) for d in (CALM, CLUSTERS, SEGMENTS) for c in FAR] + [(DEEP, 20_001)],
    ids=str,
)
def test_rows_in_parts(emulator, device, classes):
    emulator.set_device(*device)
    perm, lam = torch.tensor([1, 0]), torch.tensor([0.3, 0.6])
    for dtype, kind in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        z, t = torch.randn(2, classes).to(dtype), off(torch.rand(2, classes).to(kind), 3)
        w = torch.rand(classes)
        assert agree(z, *both(z, t, perm, lam, weight=w, label_smoothing=0.1))
        assert agree(z, *both(z, torch.tensor([0, classes - 1]), perm, lam, softcap=3.0))


@pytest.mark.parametrize("classes", TAILS[2:])
@pytest.mark.parametrize("weighted", [False, True])
def test_absent_terms_and_masked_classes(emulator, classes, weighted):
    z, t = torch.randn(7, classes), torch.rand(7, classes)
    other = torch.rand(7, classes)
    lam = torch.tensor([1.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5])
    w = torch.rand(classes) if weighted else None
    # A target with coefficient 0 may hold anything.
    other[0, :], t[1, :] = NAN, INF
    other[0, -1], t[1, 0] = -INF, NAN
    # Masked classes (-inf logits), first and last, with probability 0 or weight 0.
    z[2, [0, -1]] = -INF
    t[2, [0, -1]], other[2, [0, -1]] = 0, 0
    if weighted:
        z[3, -1], w[-1] = -INF, 0
    z[4, 1] = NAN
    z[5] = -INF
    z[6, 2] = INF
    got, want = both(z, t, None, lam, target_b=other, weight=w)
    assert close(got[0], want[0], 3e-6) and got[0][:4].isfinite().all()
    assert close(got[1][:4], want[1][:4], 3e-6) and got[1][:4].isfinite().all()
    assert got[0][4:].isnan().all() and got[1][4:].isnan().all()
    if weighted:  # the target of a class with weight 0 does not matter either
        t[3, -1] = INF
        again = both(z, t, None, lam, target_b=other, weight=w)[0]
        assert torch.equal(again[0][3], got[0][3]) and torch.equal(again[1][3], got[1][3])
    # A masked class with a probability other than 0 has an infinite loss.
    t[2, -1] = 0.5
    assert weighted or both(z, t, None, lam, target_b=other)[0][0][2] == INF


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "pixels apart"])
@pytest.mark.parametrize("shape", [(2, 3, 3, 5), (2, 33, 4, 8), (2, 40, 7, 9), (2, 1300, 4, 8)])
def test_maps_of_targets(emulator, layout, shape):
    for dtype, kind in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        z, t = torch.randn(shape).to(dtype), torch.rand(shape).to(kind)
        if layout == "channels_last":
            z = z.contiguous(memory_format=torch.channels_last)
        if layout == "pixels apart":
            t = torch.stack([t, t], -1)[..., 0]
        else:
            t = t.contiguous(memory_format=torch.channels_last)
        w = torch.rand(shape[1])
        lam = torch.tensor([0.3, 1.0])
        args = {"weight": w, "label_smoothing": 0.1}
        assert agree(z, *both(z, t, torch.tensor([1, 0]), lam, **args))
        assert agree(z, *both(z, t.contiguous(), torch.tensor([1, 0]), lam))
        labels = torch.randint(0, shape[1], (2, *shape[2:]))
        assert agree(z, *both(z, labels, torch.tensor([1, 0]), lam, softcap=3.0))
