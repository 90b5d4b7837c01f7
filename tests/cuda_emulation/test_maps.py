"""Segmentation maps: neighbouring pixels are moved at once, by labels too; any number of lanes."""

import pytest
import torch

from tests.cuda_emulation.cross_entropy_checks import CALM, OPS, close, loss_of, truth
from tests.support.cases import TOLERANCE

HALF, BF16, FLOAT = torch.float16, torch.bfloat16, torch.float32
INF, NAN = float("inf"), float("nan")


def run(emulator, z, y, lam, **kw):
    """(loss, stats, gradient) of the maps kernel, the arguments after the logits, and perm."""
    emulator.set_device(*CALM)
    emulator.launches()
    perm = torch.arange(len(z)).roll(1)
    found, args = loss_of(z, y, perm, lam, **kw)
    assert any("cross_entropy_maps<" in name for name in emulator.launches())
    return found, args, perm


# One lane for all classes, up to eight; the last ones may have no class.
@pytest.mark.parametrize("classes", [2, 21, 60, 130, 201])
@pytest.mark.parametrize("dtype", [HALF, BF16, FLOAT], ids=str)
def test_any_number_of_classes(emulator, classes, dtype):
    z = (3 * torch.randn(2, classes, 16, 36)).to(dtype)
    y, lam = torch.randint(0, classes, (2, 16, 36)), torch.tensor([0.3, 1.0])
    y[:, ::5, ::3] = -100
    for kw in ({"label_smoothing": 0.1, "z_loss": 0.1}, {"weight": torch.rand(classes)}):
        kw["reduction"] = "none"
        (loss, stats, gradient), args, perm = run(emulator, z, y, lam, **kw)
        want, want_gradient = truth(z, y, perm, lam, torch.ones(()), **kw)
        assert close(loss, want, TOLERANCE[FLOAT])
        assert close(gradient, want_gradient, TOLERANCE[dtype])
        again = OPS.cross_entropy_backward(torch.ones_like(loss), stats, z, *args)
        assert torch.equal(again, gradient)


def test_masked_and_bad_pixels(emulator):
    z, y = torch.randn(2, 21, 16, 36), torch.randint(0, 21, (2, 16, 36))
    y[0, 0, 0] = y[0, 3, 4] = 5
    z[0, 6, 0, 0], z[0, :, 3, 4], z[1, 2, 3, 5] = -INF, -INF, NAN  # in turn: right, NaN, NaN
    y[1, 0, 0] = 6  # the partner's label is masked: an infinite loss
    swap, lam = torch.tensor([1, 0]), torch.tensor(0.3)
    want, want_gradient = truth(z, y, swap, lam, torch.ones(()), reduction="none")
    y[0, 9, 9] = 21  # out of range: NaN for it and its partner
    (loss, _, gradient), _, _ = run(emulator, z, y, 0.3, reduction="none")
    assert loss[:, 9, 9].isnan().all() and gradient[:, :, 9, 9].isnan().all()
    want[:, 9, 9], want_gradient[:, :, 9, 9] = NAN, NAN
    assert close(loss, want, 3e-6) and loss[0, 0, 0] == INF and loss[0, 3, 4].isnan()
    assert close(gradient, want_gradient, 3e-6)


@pytest.mark.parametrize("classes", [21, 201])
@pytest.mark.parametrize("dtype", [BF16, FLOAT], ids=str)
def test_each_byte_moves_once_in_wide_accesses(emulator, classes, dtype):
    z, y = torch.randn(2, classes, 16, 36).to(dtype), torch.randint(0, classes, (2, 16, 36))
    emulator.count_traffic(True)
    (_, stats, gradient), _, _ = run(emulator, z, y, 0.3, reduction="sum")
    counted, width = emulator.traffic(), 3 if dtype == BF16 else 4  # 4 pixels: 8 or 16 bytes
    size = z.numel() * z.element_size()
    for t, widths, sectors in (
        (z, counted[z.data_ptr()].loads, counted[z.data_ptr()].loaded_sectors),
        (
            gradient,
            counted[gradient.data_ptr()].stores,
            counted[gradient.data_ptr()].stored_sectors,
        ),
    ):
        assert widths[width] << width == size and sum(widths) == widths[width]
        assert 32 * sectors <= 1.01 * size, t.shape
    for widths in (counted[y.data_ptr()].loads, counted[stats.data_ptr()].stores):
        assert sum(widths) == widths[4] > 0


@pytest.mark.parametrize("way", ["odd", "logits", "labels", "few", "many classes"])
def test_other_maps_go_by_tiles(emulator, way):
    """Where 4 pixels cannot be moved at once, with little work, or beyond the shared memory."""
    emulator.set_device(*CALM)
    batch, height, width = {"few": (2, 8, 8), "odd": (2, 25, 35)}.get(way, (2, 24, 36))
    classes = 400 if way == "many classes" else 5
    pixels = batch * height * width
    z = torch.randn(classes * pixels + 1)[way == "logits" :][: classes * pixels]
    y = torch.randint(0, classes, (pixels + 1,))[way == "labels" :][:pixels]
    z, y = z.view(batch, classes, height, width), y.view(batch, height, width)
    perm, lam = torch.tensor([1, 0]), torch.tensor(0.3)
    emulator.launches()
    (loss, _, gradient), _ = loss_of(z, y, perm, lam)
    assert any("cross_entropy_tiles<" in name for name in emulator.launches())
    want, want_gradient = truth(z, y, perm, lam, torch.ones(()))
    assert close(loss, want, 3e-6) and close(gradient, want_gradient, 3e-6)
