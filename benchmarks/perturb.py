"""Images that a network has not seen: under affine maps, and changed against it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Matrix = list[list[float]]  # from the place in the new image to that in the old one, in -1..1


def rotation(degrees: float) -> Matrix:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [[c, -s, 0.0], [s, c, 0.0]]


def shear(degrees: float) -> Matrix:
    return [[1.0, math.tan(math.radians(degrees)), 0.0], [0.0, 1.0, 0.0]]


def window(scale: float) -> Matrix:
    """The centered part of the old image, `scale` times its height and width, fills the new one."""
    return [[scale, 0.0, 0.0], [0.0, scale, 0.0]]


@dataclass(frozen=True)
class Deformation:
    """Each image under the matrix of a value of its own, drawn uniformly from low..high."""

    matrix: Callable[[float], Matrix]
    low: float
    high: float

    def matrices(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(count, generator=generator, dtype=torch.float64)
        values = self.low + (self.high - self.low) * drawn
        return torch.tensor([self.matrix(value) for value in values.tolist()])


def fixed(scale: float) -> Deformation:
    return Deformation(window, scale, scale)


# Those of the paper's section 5.2 and Table 4, in the words of Table 9. To zoom in at 60 % is to
# cut out the inner 60 % of height and width; out at 120 % adds a border. The paper gives no formula
# for shearing: here a row moves by its height times the tangent.
DEFORMATIONS = {
    "rotation 20": Deformation(rotation, -20.0, 20.0),
    "rotation 40": Deformation(rotation, -40.0, 40.0),
    "shear 28.6": Deformation(shear, -28.6, 28.6),
    "shear 57.3": Deformation(shear, -57.3, 57.3),
    "zoom in 60 %": fixed(0.6),
    "zoom in 80 %": fixed(0.8),
    "zoom out 120 %": fixed(1.2),
    "zoom out 140 %": fixed(1.4),
}


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Images (N, C, H, W) under their matrices (N, 2, 3); 0 is what lies beyond the edge."""
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def fgsm(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    step: float,
    low: float | Tensor,
    high: float | Tensor,
) -> Tensor:
    """One step up the loss, of this size in each pixel, that stays in low..high."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    return (x + step * gradient.sign()).detach().clamp(low, high)


def pgd(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    epsilon: float,
    step: float,
    steps: int,
) -> Tensor:
    """Steps of fgsm from pixels in 0..1, which stay there and within epsilon of where they were."""
    low, high = (x - epsilon).clamp(min=0), (x + epsilon).clamp(max=1)
    for _ in range(steps):
        x = fgsm(model, x, y, step, low, high)
    return x
