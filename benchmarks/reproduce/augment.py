"""Random crops and flips of a batch of uint8 images, and their normalisation, on their device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def draw(count: int, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """(count, 3): for each image the crop's top and left, and whether it is mirrored."""
    corners = torch.randint(2 * pad + 1, (count, 2), generator=generator)
    mirrored = torch.randint(2, (count, 1), generator=generator) * flip
    return torch.cat([corners, mirrored], 1)


def crop(images: Tensor, drawn: Tensor, pad: int) -> Tensor:
    """The images, padded with zeros, from the corners drawn, mirrored where that was drawn."""
    height, width = images.shape[2:]
    drawn = drawn.to(images.device)
    top, left, mirrored = drawn[:, :, None].unbind(1)
    rows = top + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left + torch.where(mirrored == 1, columns.flip(0), columns)
    padded = F.pad(images, [pad] * 4).permute(0, 2, 3, 1)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def normalized(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Floats; mean and std are of pixels in 0..1."""
    shift, scale = (
        torch.tensor(values, device=images.device)[:, None, None] * 255 for values in (mean, std)
    )
    return (images.float() - shift) / scale
