"""What the readers return, and the error that they raise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class BadData(ValueError):
    """One sentence: what was expected, what was found, and where."""


@dataclass(frozen=True)
class Split:
    images: Tensor  # uint8, (N, 3, H, W), RGB
    labels: Tensor  # int64, (N,)

    @classmethod
    def checked(cls, images: np.ndarray, labels: np.ndarray, classes: int, where: Path) -> Split:
        """A split of a file that must have an image, and a label in 0..classes-1 for each."""
        if len(images) != len(labels) or len(images) == 0:
            raise BadData(
                f"{where} must hold images and a label for each, "
                f"but holds {len(images)} images and {len(labels)} labels"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise BadData(
                f"{where} must have labels of {classes} classes, 0 to {classes - 1}, "
                f"but has {low if low < 0 else high}"
            )
        # Copied: the bytes of a file are read-only, and some come with the color last.
        return cls(torch.from_numpy(np.array(images, order="C")), torch.tensor(labels).long())


@dataclass(frozen=True)
class ImageSet:
    name: str
    train: Split
    test: Split
    classes: int
    mean: tuple[float, float, float]  # of pixels in 0..1
    std: tuple[float, float, float]
