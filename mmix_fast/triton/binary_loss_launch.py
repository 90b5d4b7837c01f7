"""Launch settings of the mixed binary cross-entropy, from metadata alone, as in launch.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..arithmetic import compute_dtype
from . import launch as common
from . import loss_launch
from .arguments import BinaryOptions, BinaryTile, Matrix, constants
from .binary_loss_kernels import binary_loss_kernel
from .launch import Launch, cdiv, pow2
from .loss_launch import Layout, layout, matrix, pairing, tile_elements
from .targets_launch import smoothing

MAX_ROWS = 256  # of a tile; adjacent ones (BESIDE) fill the accesses of a warp
# A program takes all classes of its rows, unless there would be fewer programs than this. What it
# does once for its rows (it reads the permutation, for one) then costs little.
MANY_PROGRAMS = 1024


def tile_sizes(at: Layout, acc: int) -> tuple[int, int, int]:
    """(rows, classes) of a tile, and the classes of a program, a multiple of the tile's; ``acc``:
    size of the compute dtype in bytes."""
    every = pow2(at.classes)
    elements = tile_elements(at.n * every, at.outer, acc)
    if at.beside:
        elements //= 2  # labels and addresses of each row take registers
        rows = min(pow2(at.n), elements, MAX_ROWS)
        step = min(every, elements // rows)
    else:
        step = min(every, elements)
        rows = min(pow2(at.n), elements // step, MAX_ROWS)
    steps = cdiv(at.classes, step)
    wanted = cdiv(MANY_PROGRAMS, at.outer * cdiv(at.n, rows))
    return rows, step, cdiv(steps, min(steps, wanted)) * step


def divisor(logits: Tensor, reduction: str) -> int:
    return {"mean": logits.numel(), "batchmean": logits.shape[0]}.get(reduction, 1)


def binary_loss(
    logits: Tensor,
    inputs: tuple[Any, ...],
    *,
    forward: bool = False,
    losses: Tensor | None = None,
    out: Tensor | None = None,
    grad: Tensor | None = None,
    rescale: bool = False,
) -> tuple[list[Launch], Tensor | None]:
    """(launches, the parts of the loss, which add up to it). ``inputs``: the op's arguments from
    target on. ``losses``, for reduction "none": where ``forward`` writes each element's. The
    gradient is written if ``out`` is given."""
    target, perm, target_b, lam, weight, pos_weight, reduction, eps, threshold = inputs
    z = matrix(logits)
    at = layout(logits, z)
    acc = compute_dtype(logits.dtype)
    labels, every = target.dtype == torch.int64, reduction == "none"
    rows, step, span = tile_sizes(at, acc.itemsize)
    row_tiles, spans = cdiv(at.n, rows), cdiv(at.classes, span)
    programs = at.outer * row_tiles * spans

    def matrix_of(t: Tensor | None) -> tuple[Matrix, int]:
        """(t's Matrix, elements per access)."""
        if t is None:
            return Matrix(None, 0, 0, 0), 1
        return matrix(t), at.vector(matrix(t))

    if forward and not every:
        losses = logits.new_empty(programs, dtype=acc)
    loss_matrix, loss_vec = matrix_of(losses) if every else (Matrix(losses, 0, 0, 0), 1)
    grad_matrix, grad_vec = matrix_of(grad) if every else (Matrix(grad, 0, 0, 0), 1)
    out_matrix = z._replace(ptr=None) if out is None else matrix(out)
    own_targets, other_targets = Matrix(target, 0, 0, 0), Matrix(target_b, 0, 0, 0)
    target_vec = partner_vec = 1
    if not labels:
        own_targets, target_vec = matrix_of(target)
        other_targets, partner_vec = matrix_of(target if target_b is None else target_b)
    pairs, block_batch, launches = pairing(perm, lam, at.samples)
    smooth = smoothing(eps, at.classes if labels else 2)
    options = constants(
        BinaryOptions, LABELS=labels, SPATIAL=at.inner > 1, BESIDE=at.beside, SMOOTH=eps != 0,
        THRESHOLD=threshold is not None, EVERY=every, FORWARD=forward, GRADIENT=out is not None,
        RESCALE=rescale,
    )  # fmt: skip
    tile = constants(
        BinaryTile, BLOCK_ROWS=rows, BLOCK_CLASSES=step, VEC=at.vector(z, out_matrix),
        TARGET_VEC=target_vec, PARTNER_VEC=partner_vec, LOSS_VEC=loss_vec, GRAD_VEC=grad_vec,
        ALONG=common.vector(2, at.along), BLOCK_BATCH=block_batch,
    )  # fmt: skip
    args = {
        "logits": z, "out": out_matrix, "target": own_targets, "partner": other_targets,
        "loss": loss_matrix, "grad": grad_matrix, "pairs": pairs, "classes": at.classes,
        "inner": at.inner, "row_tiles": row_tiles, "spans": spans, "span": span,
        "weight_ptr": weight, "pos_weight_ptr": pos_weight,
        "hot": smooth["keep"] + smooth["base"], "threshold": threshold or 0.0,
        "scale": 1 / divisor(logits, reduction), "OPT": options, "TILE": tile, **smooth,
    }  # fmt: skip
    warps = common.warps_for(rows * step * acc.itemsize, loss_launch.BYTES_PER_THREAD)
    # Without fused multiply-add, an element takes 8 more instructions.
    exact = threshold is not None
    launches.append(Launch(binary_loss_kernel, programs, args, warps, exact))
    return launches, losses
