"""CutMix in place: the paste alone, and the transforms of timm and torchvision.

The transforms are measured where the packages are installed (`make test-deep` installs them). Every
call must do the same work: a paste repeats the same box, and before a transform, which draws its
box, the generator is seeded, for ours and for the original alike. Seeding takes about 3 us.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

import mmix_fast

from ..problem import OURS, Goal, Implementation, Maker, Problem, by_threads
from ..torchvision_ops import declare_missing

Box = tuple[int, int, int, int]
Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

BATCH = (128, 3, 32, 32)  # CIFAR images
PASTED = ((64, 3, 32, 32), BATCH)
IMAGENET = (256, 3, 224, 224)  # as a loader gives them, in bytes
CLASSES = 1000
SEED = 4  # draws a box of nearly half of the image in timm, nearly a third in torchvision
ORIGINAL = "original"
TOLERANCES = (0.0, 1e-6)  # relative, absolute: pixels are copied; only λ is rounded


def flip_and_paste_(x: Tensor, box: Box) -> Tensor:
    """As timm writes it."""
    top, bottom, left, right = box
    x[:, :, top:bottom, left:right] = x.flip(0)[:, :, top:bottom, left:right]
    return x


def index_and_paste_(x: Tensor, perm: Tensor, box: Box) -> Tensor:
    """As the formula reads."""
    top, bottom, left, right = box
    x[..., top:bottom, left:right] = x[perm][..., top:bottom, left:right]
    return x


def compare(
    x: Tensor, perm: Tensor, original: Callable[[Tensor, Box], Tensor], goal: float
) -> Problem:
    height, width = x.shape[-2:]
    box = (height // 4, height - height // 4, width // 4, width - width // 4)  # the middle quarter
    expected = original(x.clone(), box)
    implementations = {
        OURS: Implementation(lambda x: mmix_fast.cutmix_(x, perm, box)[0], expected),
        ORIGINAL: Implementation(lambda x: original(x, box), expected),
    }
    goals = (Goal(ORIGINAL, 1 / goal),)
    return Problem(
        "cutmix_", tuple(x.shape), x.dtype, x.clone, implementations, goals=goals, cold=False
    )


def paste(shape: tuple[int, ...], device: str) -> Problem:
    perm = torch.arange(shape[0], device=device).flip(0)
    return compare(torch.randn(shape, device=device), perm, flip_and_paste_, 1.5)


def paste_bytes(shape: tuple[int, ...], device: str) -> Problem:
    perm = torch.randperm(shape[0], device=device)
    x = torch.randint(256, shape, dtype=torch.uint8, device=device)
    return compare(x, perm, lambda x, box: index_and_paste_(x, perm, box), 8)


def timm_pair() -> tuple[Transform, Transform, Callable[[], object]]:
    """Our transform, timm's, and a call that seeds both. Both change the batch in place."""
    declare_missing()  # timm imports torchvision
    from timm.data import Mixup as Original

    from mmix_fast.integrations.timm import Mixup

    options = {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "num_classes": CLASSES}
    return Mixup(**options), Original(**options), partial(np.random.seed, SEED)


def torchvision_pair() -> tuple[Transform, Transform, Callable[[], object]]:
    """Our transform, torchvision's, and a call that seeds both. Both return a new batch."""
    declare_missing()
    from torchvision.transforms.v2 import CutMix as Original

    from mmix_fast.integrations.torchvision import CutMix

    options = {"alpha": 1.0, "num_classes": CLASSES}
    seed = partial(torch.default_generator.manual_seed, SEED)
    return CutMix(**options), Original(**options), seed


PAIRS = {"timm": timm_pair, "torchvision": torchvision_pair}


def batch(package: str, shape: tuple[int, ...], device: str) -> Problem:
    """A transform on images and labels, called as in a training loop."""
    ours, original, seed = PAIRS[package]()
    x = torch.randn(shape, device=device)
    y = torch.randint(0, CLASSES, shape[:1], device=device)

    def seeded(transform: Transform, x: Tensor) -> tuple[Tensor, Tensor]:
        seed()
        return transform(x, y)

    expected = seeded(original, x.clone())
    implementations = {
        OURS: Implementation(partial(seeded, ours), expected, *TOLERANCES),
        ORIGINAL: Implementation(partial(seeded, original), expected, *TOLERANCES),
    }
    goals = (Goal(ORIGINAL, 1 / 1.2),)
    op = f"CutMix of {package}"
    return Problem(op, shape, x.dtype, x.clone, implementations, goals=goals, cold=False)


def makers(device: str) -> list[Maker]:
    found: list[Maker] = [partial(paste, shape, device) for shape in PASTED]
    found.append(partial(paste_bytes, IMAGENET, device))
    found += [
        partial(batch, package, BATCH, device)
        for package in PAIRS
        if importlib.util.find_spec(package)
    ]
    return by_threads(found, device)
