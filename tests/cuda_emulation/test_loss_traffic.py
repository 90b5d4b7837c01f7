"""Bytes that the loss moves with float targets, class weights and segmentation maps.

In multiples of a tensor's bytes, counted in 32-byte sectors for each access of a warp. A forward
with gradient moves at least 2NC with labels, 3NC with one float target, 4NC with a pair of them.
"""

import pytest
import torch

from tests.cuda_emulation.cross_entropy_checks import CALM, CLUSTERS, OPS, SEGMENTS, arguments

HALF, BF16, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


def run(emulator, z, target, lam, **kw):
    """A forward with gradient: (times(t) -> traffic over bytes of t, counters, gradient)."""
    perm = None if "target_b" in kw else torch.arange(len(z)).roll(1)
    acc = DOUBLE if z.dtype == DOUBLE else FLOAT
    args = arguments(target, perm, torch.as_tensor(lam, dtype=acc), **kw)
    emulator.count_traffic(True)
    _, _, gradient = OPS.cross_entropy(z, *args, 1.0)
    counted = emulator.traffic()

    def times(t):
        one = counted.get(t.data_ptr())
        bytes_ = t.numel() * t.element_size()
        return 32 * (one.loaded_sectors + one.stored_sectors) / bytes_ if one else 0.0

    return times, counted, gradient


def check_logits(times, z, gradient, limit):
    assert 0.99 <= times(z) <= limit and 0.99 <= times(gradient) <= limit


# Rows that are multiples of 16 bytes, or not; for tiles, for a warp a row, for a block a row.
CLASSES = [(64, 64, 1.01), (64, 100, 1.2), (64, 101, 1.4), (64, 1000, 1.04), (64, 1001, 1.12)]
CLASSES += [(3, 21_841, 1.1), pytest.param(16, 21_841, 1.05, marks=pytest.mark.deep)]


@pytest.mark.parametrize("batch, classes, limit", CLASSES)
@pytest.mark.parametrize(
    "dtype, kind", [(FLOAT, FLOAT), (BF16, BF16), (FLOAT, BF16), (BF16, FLOAT)], ids=str
)
def test_dense_targets_are_read_once(emulator, batch, classes, limit, dtype, kind):
    z, t = torch.randn(batch, classes).to(dtype), torch.rand(batch, classes).to(kind)
    other = torch.rand(batch, classes).to(kind)
    # lam 1 reads no partner's target, lam 0 no own one: one float target, 3NC in all.
    for lam, own, partner in ((1.0, 1, 0), (0.0, 0, 1), (0.3, 1, 1)):
        times, _, gradient = run(emulator, z, t, lam, target_b=other)
        check_logits(times, z, gradient, min(limit, 1.06))
        for reads, tensor in ((own, t), (partner, other)):
            assert reads <= times(tensor) <= reads * limit + 1e-9, (lam, times(tensor))
    # Each target is read for its own row and as a partner's: 4NC in all.
    times, _, gradient = run(emulator, z, t, 0.3)
    assert 1.99 <= times(t) <= 2 * limit


def test_rows_whose_partner_is_absent_are_read_once(emulator):
    z, t = torch.randn(64, 1000), torch.rand(64, 1000)
    lam = torch.full((64,), 0.5)
    lam[::4], lam[1::4] = 0, 1
    times, _, _ = run(emulator, z, t, lam)
    assert times(t) == pytest.approx(1.5, rel=0.02)


@pytest.mark.parametrize("dtype", [BF16, FLOAT, DOUBLE], ids=str)
@pytest.mark.parametrize("kind", [HALF, BF16, FLOAT, DOUBLE], ids=str)
@pytest.mark.parametrize("classes", [64, 1000, 2056])
def test_dense_targets_are_read_by_vectors(emulator, dtype, kind, classes):
    z, t = torch.randn(32, classes).to(dtype), torch.rand(32, classes).to(kind)
    _, counted, _ = run(emulator, z, t, 0.3)
    widths = counted[t.data_ptr()].loads  # of 1, 2, 4, 8, 16 bytes
    assert widths[4] * 16 == 2 * t.numel() * t.element_size() and not any(widths[:4])


@pytest.mark.parametrize("offset", range(1, 5))
def test_vectors_between_the_ends_of_unaligned_rows(emulator, offset):
    classes = 1000 + offset
    whole = torch.rand(32 * classes + offset)
    t = whole[offset:].view(32, classes)
    _, counted, _ = run(emulator, torch.randn(32, classes), t, 0.3)
    widths = counted[t.data_ptr()].loads
    # The part of each warp has unaligned ends: up to 6 classes of 512 bytes; the row, 6 more.
    assert widths[4] * 16 >= 0.93 * 2 * t.numel() * 4 and not widths[0] + widths[1] + widths[3]


@pytest.mark.parametrize("batch, classes, limit", CLASSES)
def test_weights_and_smoothing_read_a_row_of_weights_for_a_row(emulator, batch, classes, limit):
    for dtype, kind in ((BF16, FLOAT), (FLOAT, FLOAT), (BF16, BF16)):
        z, y = torch.randn(batch, classes).to(dtype), torch.randint(0, classes, (batch,))
        w = torch.rand(classes).to(kind)
        emulator.launched()
        times, counted, gradient = run(emulator, z, y, 0.3, weight=w, label_smoothing=0.1)
        check_logits(times, z, gradient, 1.06)
        # The labels' weights too, a sector each: 2 for each row, and each block sums all of them.
        (launch,) = emulator.launched()
        labels = (2 + 2 * launch.blocks) * 32 / (classes * w.element_size())
        # A row is cut at the end of a vector of logits, which is inside a sector of the weights.
        cuts = 0.02
        assert times(w) <= batch * (limit + cuts + labels)
        assert counted[w.data_ptr()].loads[4] * 16 >= 0.8 * batch * classes * w.element_size()


@pytest.mark.parametrize("kw", [{"softcap": 5.0}, {"softcap": 5.0, "z_loss": 0.1}], ids=str)
@pytest.mark.parametrize("dtype", [BF16, FLOAT], ids=str)
def test_softcap_and_z_loss_take_the_packed_path(emulator, kw, dtype):
    for classes in (100, 1000, 4096):
        z, y = torch.randn(64, classes).to(dtype), torch.randint(0, 10, (64,))
        times, counted, gradient = run(emulator, z, y, 0.3, **kw)
        check_logits(times, z, gradient, 1.04)
        size = z.numel() * z.element_size()
        assert counted[z.data_ptr()].loads[4] * 16 == size
        assert counted[gradient.data_ptr()].stores[4] * 16 == size


# The last case: labels with softcap need no memory beside the logits, so a row is read once.
def test_what_does_not_stay_on_chip_is_read_twice_at_most(emulator):
    for device, limit in ((SEGMENTS, 2.05), (CLUSTERS, 2.05), (CALM, 1.05)):
        emulator.set_device(*device)
        z, t, other = torch.randn(2, 8000), torch.rand(2, 8000), torch.rand(2, 8000)
        times, _, gradient = run(emulator, z, t, 0.3, target_b=other)
        assert max(times(z), times(t), times(other)) <= limit
        assert times(gradient) <= 1.01
    emulator.set_device(*CALM)
    z = torch.randn(2, 40_000)
    times, _, gradient = run(emulator, z, torch.tensor([3, 5]), 0.3, softcap=5.0)
    check_logits(times, z, gradient, 1.01)


SEGMENTATION = [(21, 32), (19, 33), (150, 16), (150, 33), (1300, 8)]  # classes, height and width


@pytest.mark.parametrize("classes, side", SEGMENTATION)
@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
def test_segmentation_is_coalesced(emulator, classes, side, dtype, layout):
    form = {"memory_format": getattr(torch, layout)}
    z = torch.randn(2, classes, side, side).to(dtype).contiguous(**form)
    t, other = (torch.rand(z.shape).to(dtype).contiguous(**form) for _ in "ab")
    # If a map's side is no multiple of 16 bytes, neighbouring tiles share sectors.
    limit = 1.06 if layout == "channels_last" or side % 8 == 0 else 1.3 if dtype == FLOAT else 1.5
    times, _, gradient = run(emulator, z, torch.randint(0, classes, (2, side, side)), 0.3)
    check_logits(times, z, gradient, limit)
    times, _, gradient = run(emulator, z, t, 0.3, target_b=other)
    check_logits(times, z, gradient, limit)
    # The classes of a pixel begin inside a sector that the pixel before uses too.
    shared = 1 + 96 / (classes * z.element_size()) if layout == "channels_last" else limit
    assert max(times(t), times(other)) <= max(limit, min(shared, 2.0))


def test_a_target_of_another_layout_than_the_logits(emulator):
    z = torch.randn(2, 150, 16, 16)
    t = torch.rand(z.shape)
    other = torch.rand(z.shape).contiguous(memory_format=torch.channels_last)
    times, _, gradient = run(emulator, z, t, 0.3, target_b=other)
    check_logits(times, z, gradient, 1.01)
    assert times(t) <= 1.01 and times(other) <= 1.2


def test_traffic_for_an_upstream_gradient_of_1_and_others(emulator):
    """A forward with gradient moves 2NC; an upstream of 1 adds nothing, any other adds 2NC.

    In place, the gradient is computed in the backward: 1NC forward, 2NC backward, for any upstream.
    """
    z, y, perm = torch.randn(64, 1000), torch.randint(0, 1000, (64,)), torch.randperm(64)
    args = arguments(y, perm, torch.tensor(0.3))
    emulator.count_traffic(True)
    _, stats, gradient = OPS.cross_entropy(z, *args, 1.0)

    def moved():
        counted = emulator.traffic()
        sectors = [
            c.loaded_sectors + c.stored_sectors
            for c in (counted.get(t.data_ptr()) for t in {z, gradient})
            if c
        ]
        return 32 * sum(sectors) / (z.numel() * z.element_size())

    assert moved() == pytest.approx(2, rel=0.01)
    OPS.cross_entropy_rescale_(gradient, torch.tensor(1.0), stats, z, *args)
    assert moved() == pytest.approx(2, rel=0.01)
    OPS.cross_entropy_rescale_(gradient, torch.tensor(0.25), stats, z, *args)
    assert moved() == pytest.approx(4, rel=0.01)
    emulator.count_traffic(True)
    _, stats, gradient = OPS.cross_entropy(z, *args, None)
    OPS.cross_entropy_backward_(torch.tensor(0.25), stats, z, *args)
    assert moved() == pytest.approx(3, rel=0.01)
