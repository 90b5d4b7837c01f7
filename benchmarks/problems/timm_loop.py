"""What a step of timm's loop does around the model: Mixup, the loss and its gradient.

Ours leaves the targets sparse. The drop-in with dense targets, and timm where it is installed
(`make test-deep` installs it), write targets of the logits' size and read them back. The bytes:
read the logits and write the gradient, 2N; with dense targets also write them and read them, 4N.
Each call seeds NumPy (about 3 us), so that all of them draw the same λ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor, nn

from mmix_fast.integrations import timm

from ..problem import Problem
from ..torchvision_ops import declare_missing
from .common import Loss, make_inputs
from .losses import FLOAT, Cases, loss_problem

SEED = 3  # λ = 0.71
FEATURES, CIFAR = (1,), (3, 32, 32)  # of a sample; one feature: the targets and the loss remain
GOAL, GOAL_OF_TIMM = 2.0, 3.0
DENSE, ORIGINAL = "dense drop-in", "timm"


def step(mixup: Callable[..., tuple], criterion: nn.Module) -> Loss:
    def loss(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        np.random.seed(SEED)
        return criterion(z, mixup(x, y)[1])  # mixes x in place

    return loss


def timm_loop(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    sample: tuple[int, ...] = FEATURES,
    criterion: str = "SoftTargetCrossEntropy",
) -> Problem:
    z, y, *_ = make_inputs(shape, dtype, device)
    x = torch.rand(shape[0], *sample, device=device)
    options = {"num_classes": shape[1]}
    loss = getattr(timm, criterion)()
    baselines = {DENSE: (step(timm.Mixup(**options), loss), GOAL)}
    if find_spec("timm"):
        baselines[ORIGINAL] = original(options, criterion), GOAL_OF_TIMM
    ours = step(timm.Mixup(**options, soft_targets=False), loss)
    binary = criterion == "BinaryCrossEntropy"
    op = "timm loop" + ", BCE" * binary + ", images" * (sample != FEATURES)
    moved = 2 * z.nbytes if sample == FEATURES else 0
    return loss_problem(op, z, (x, y), ours, baselines, False, moved, binary)


def original(options: dict[str, int], criterion: str) -> Loss:
    declare_missing()  # timm imports torchvision
    import timm.data
    import timm.loss

    return step(timm.data.Mixup(**options), getattr(timm.loss, criterion)())


CASES: Cases = (
    (timm_loop, ((256, 1000), (256, 21841)), FLOAT),
    (partial(timm_loop, criterion="BinaryCrossEntropy"), ((256, 1000),), FLOAT),
    (partial(timm_loop, sample=CIFAR), ((256, 1000),), FLOAT),
)
