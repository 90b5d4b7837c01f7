"""Crops, flips and normalisation against a loop over images."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.reproduce.augment import crop, draw, normalized


@pytest.mark.parametrize("pad", [0, 2, 4])
def test_each_image_is_cropped_and_mirrored_as_drawn(pad):
    images = torch.randint(1, 256, (12, 3, 8, 10), dtype=torch.uint8)
    drawn = draw(12, pad, True, torch.Generator().manual_seed(0))
    got = crop(images, drawn, pad)
    assert got.dtype == torch.uint8 and got.shape == images.shape
    assert set(drawn[:, 2].tolist()) == {0, 1}
    for image, (top, left, mirrored), result in zip(images, drawn.tolist(), got, strict=True):
        part = F.pad(image, [pad] * 4)[:, top : top + 8, left : left + 10]
        assert torch.equal(result, part.flip(2) if mirrored else part)


def test_all_corners_are_drawn_evenly():
    drawn = draw(5000, 2, False, torch.Generator().manual_seed(0))
    assert drawn[:, 2].sum() == 0
    for axis in (0, 1):
        counts = drawn[:, axis].bincount(minlength=5)
        assert counts.shape == (5,) and counts.min() > 900
    assert draw(1000, 0, True, torch.Generator().manual_seed(0))[:, :2].sum() == 0


def test_the_generator_alone_decides():
    first, second = (draw(9, 4, True, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, draw(9, 4, True, torch.Generator().manual_seed(4)))


def test_pixels_are_scaled_before_mean_and_deviation():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    got = normalized(images, (0.5, 0.2, 0.5), (0.5, 0.1, 0.25))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.flatten(), torch.tensor([-1.0, 0.0, 2.0]))
