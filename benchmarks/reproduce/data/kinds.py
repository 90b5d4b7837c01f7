"""What the readers return, and the error that they raise."""

from dataclasses import dataclass

from torch import Tensor


class BadData(ValueError):
    """One sentence: what was expected, what was found, and where."""


@dataclass(frozen=True)
class Split:
    images: Tensor  # uint8, (N, 3, H, W), RGB
    labels: Tensor  # int64, (N,)


@dataclass(frozen=True)
class ImageSet:
    name: str
    train: Split
    test: Split
    classes: int
    mean: tuple[float, float, float]  # of pixels in 0..1
    std: tuple[float, float, float]
