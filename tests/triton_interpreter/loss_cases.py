"""Losses that the interpreter's tests share: shapes, the grid of options, random arguments."""

import random
from itertools import product

import torch

from mmix_fast.arithmetic import compute_dtype
from tests.support.cases import DTYPES

SHAPES = [(6, 11), (4, 3, 2, 2), (3, 40)]
EXTRAS = [(0.0, 0.0, 0.0), (0.1, 0.0, 0.0), (0.0, 0.05, 3.0), (0.1, 0.05, 3.0)]  # eps, z_loss, cap
GRID = list(product(EXTRAS, ["mean", "sum", "none"], [False, True], [False, True]))
random.Random(0).shuffle(GRID)  # so that no shape or dtype has the same option in all its cells


def cells(shape, dtype, labels, size, number):
    """So many cells of the grid: (extras, reduction, per_sample, weighted).

    The interpreter takes 0.1 s a launch, so each case runs a few cells; together they run all.
    """
    case = (4 * DTYPES.index(dtype) + 2 * labels + (size == "large")) * len(SHAPES)
    step = len(GRID) // number
    return GRID[(case + SHAPES.index(shape)) % step :: step]


def draw(shape, dtype, labels, per_sample, weighted):
    """(logits, target, perm, target_b, lam, weight), the tensors before the options of the op."""
    classes, rows = shape[1], shape[:1] + shape[2:]
    z = (3 * torch.randn(shape)).to(dtype)
    y, other = (
        torch.randint(0, classes, rows) if labels else torch.rand(shape).softmax(1) for _ in "ab"
    )
    if labels:
        y.view(-1)[1] = -100
    # With target_b, the two divisors of a mean differ.
    perm, partner = (None, other) if weighted else (torch.randperm(shape[0]), None)
    lam = torch.rand(shape[0] if per_sample else (), dtype=compute_dtype(dtype))
    if per_sample:
        lam[0], lam[1] = 0, 1
    return z, y, perm, partner, lam, torch.rand(classes).to(dtype) if weighted else None
