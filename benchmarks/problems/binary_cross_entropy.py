"""The mixed binary cross-entropy with its gradient, against mixed dense targets.

With labels (timm's smoothing) and with multi-hot targets of one byte. The bytes: read the logits
and write the gradient; with multi-hot targets also read each target twice, its own row and the
partner's.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mmix_fast import mixed_binary_cross_entropy

from ..problem import Problem
from .common import Loss, make_inputs
from .losses import SMOOTHING, Cases, loss_problem

POSITIVES = 0.01  # the share of classes that are positive in a multi-hot target


def dense_labels(z: Tensor, y: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    """As timm does it: smoothed one-hot targets, mixed, then the loss."""
    classes = z.shape[1]
    off = SMOOTHING / classes
    q = torch.full(z.shape, off, device=z.device).scatter_(1, y[:, None], 1 - SMOOTHING + off)
    return dense(z, q, perm, lam)


def dense(z: Tensor, q: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    # In float32 also for bfloat16 logits, else the targets lose their smoothing.
    q = q.to(torch.promote_types(z.dtype, torch.float32))
    return F.binary_cross_entropy_with_logits(z, lam * q + (1 - lam) * q[perm])


def labels(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    inplace: bool = False,
    compiling: bool = True,
) -> Problem:
    z, *rest = make_inputs(shape, dtype, device)
    ours = partial(mixed_binary_cross_entropy, label_smoothing=SMOOTHING, inplace_backward=inplace)
    op = "BCE, labels, in place" if inplace else "BCE, labels"
    goal = 8.0 if inplace else 5.0
    return _problem(op, z, tuple(rest), ours, dense_labels, goal, 2 * z.nbytes, compiling)


def multi_hot(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, compiling: bool = True
) -> Problem:
    z, _, perm, lam = make_inputs(shape, dtype, device)
    hot = (torch.rand(shape, device=device) < POSITIVES).to(torch.uint8)
    moved = 2 * z.nbytes + 2 * hot.nbytes
    ours = mixed_binary_cross_entropy
    return _problem("BCE, multi-hot", z, (hot, perm, lam), ours, dense, 4.0, moved, compiling)


def _problem(
    op: str,
    z: Tensor,
    args: tuple[Tensor, ...],
    ours: Loss,
    eager: Loss,
    goal: float,
    moved: int,
    compiling: bool,
) -> Problem:
    compiling = compiling and z.shape[1] != IMAGENET_21K[1]  # there an eager call takes seconds
    baselines = {"dense targets": (eager, goal)}
    return loss_problem(op, z, args, ours, baselines, compiling, moved, binary=True)


IMAGENET, IMAGENET_21K = (256, 1000), (1024, 21841)
DTYPES = (torch.float32, torch.bfloat16)
CASES: Cases = tuple(
    (kind, (IMAGENET, IMAGENET_21K), DTYPES)
    for kind in (labels, partial(labels, inplace=True), multi_hot)
)
