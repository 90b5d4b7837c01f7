"""Launch settings of the mixed cross-entropy, from metadata alone, as in launch.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..arithmetic import compute_dtype
from . import launch as common
from .arguments import Labels, Matrix, Options, Pairs, Tile, constants
from .launch import Launch, cdiv, fits, pow2
from .loss_kernels import divisors_kernel, loss_kernel
from .targets_launch import smoothing

# A row of up to this many classes is kept in registers; the key is the compute dtype's size in
# bytes. Half as many if the targets are kept too: float targets, or smoothing with class weights.
WHOLE_CLASSES = {4: 32768, 8: 8192}
# Bytes of a row per step of the online softmax, for longer rows. Half as many if targets are kept
# too: with fewer threads per block, each may use more than 128 registers.
CHUNK_BYTES = 32768
TILE_BYTES = 16384
MIN_TILE_BYTES = 4096  # smaller problems take smaller tiles, down to this
BYTES_PER_THREAD = 64
LINE_ROWS = 32  # BESIDE: adjacent rows that fill a line of memory
PARTIAL_SUMS = 128  # of the mean's divisors; every program of the loss adds them up


def row_strides(t: Tensor) -> tuple[int, int, int] | None:
    """(sample, row, class) strides of (B, C, d1, ...); None if d1, ... do not merge into one."""
    sizes, strides = t.shape[2:], t.stride()[2:]
    inner = [(n, s) for n, s in zip(sizes, strides, strict=True) if n != 1]
    if not inner:
        return 0, t.stride(0), t.stride(1)
    groups = common.merged(reversed(inner))
    return (t.stride(0), groups[0][1], t.stride(1)) if len(groups) == 1 else None


def matrix(t: Tensor) -> Matrix:
    strides = row_strides(t)
    assert strides is not None
    return Matrix(t, *strides)


@dataclass(frozen=True)
class Layout:
    """How the loss kernels number the rows of logits (B, C, d1, ...)."""

    samples: int
    classes: int
    inner: int  # rows of a sample
    beside: bool  # the classes are not adjacent, and there is more than one row

    @property
    def rows(self) -> int:
        return self.samples * self.inner

    @property
    def outer(self) -> int:
        return self.samples if self.inner > 1 else 1

    @property
    def n(self) -> int:
        """Rows of an outer index."""
        return self.inner if self.inner > 1 else self.samples

    @property
    def along(self) -> int:
        """Elements in the direction that vector accesses take."""
        return self.n if self.beside else self.classes

    def vector(self, *matrices: Matrix) -> int:
        """Elements per access: it must divide the length along it and the strides across it."""
        if any((m.row if self.beside else m.col) != 1 for m in matrices):
            return 1
        across = (s for m in matrices for s in (m.outer, m.col if self.beside else m.row))
        return common.vector(matrices[0].ptr.element_size(), self.along, *across)


def layout(logits: Tensor, z: Matrix) -> Layout:
    inner = math.prod(logits.shape[2:])
    several = (inner if inner > 1 else logits.shape[0]) > 1
    return Layout(logits.shape[0], logits.shape[1], inner, z.col != 1 and several)


def pairing(perm: Tensor | None, lam: Tensor, samples: int) -> tuple[Pairs, int, list[Launch]]:
    """(pairs, BLOCK_BATCH, launches that come first)."""
    counts, block_batch, launches = common.uses(perm) if perm is not None else (None, 0, [])
    return Pairs(perm, counts, lam, common.lam_stride(lam), samples), block_batch, launches


def tile_elements(each: int, outer: int, acc: int) -> int:
    """Elements of a tile, fewer if that makes too few programs; ``each``: of an outer index."""
    elements = TILE_BYTES // acc
    while elements * acc > MIN_TILE_BYTES and outer * cdiv(each, elements) < common.FULL_GPU:
        elements //= 2
    return elements


def block_sizes(
    n: int, outer: int, classes: int, acc: int, beside: bool, dense: bool
) -> tuple[int, int]:
    """(rows, classes) of the tile of one program; ``acc``: size of the compute dtype in bytes."""
    every = max(pow2(classes), 2)
    if beside:
        elements = TILE_BYTES // acc
        rows = min(pow2(n), LINE_ROWS)
        step = min(every, elements // rows)
        return fits(rows, elements // step, pow2(n)), step
    whole = every <= WHOLE_CLASSES[acc] // (1 + dense)
    step = every if whole else min(every, CHUNK_BYTES // (1 + dense) // acc)
    elements = tile_elements(n * step, outer, acc)
    return fits(1, elements // step, pow2(n)), step


def loss(
    logits: Tensor,
    inputs: tuple[Any, ...],
    *,
    stats: Tensor | None = None,
    losses: Tensor | None = None,
    out: Tensor | None = None,
    grad: Tensor | None = None,
    rescale: bool = False,
) -> list[Launch]:
    """``inputs``: the op's arguments from target on. Runs the forward if there is no ``grad``, and
    writes the gradient if ``out`` is given. A forward of a shard writes its part into ``stats``."""
    target, perm, target_b, lam, weight, scales, ignore_index, reduction, *rest = inputs
    eps, z_loss, softcap, class_offset, num_classes = rest
    shard, forward = num_classes > 0, grad is None
    labels, mean = target.dtype == torch.int64, reduction == "mean"
    acc = compute_dtype(logits.dtype)
    z = matrix(logits)
    g = z._replace(ptr=None) if out is None else matrix(out)
    at = layout(logits, z)
    classes, inner, rows, n = at.classes, at.inner, at.rows, at.n
    all_classes = num_classes or classes
    dense = not labels or bool(eps and weight is not None)
    block_rows, block_classes = block_sizes(n, at.outer, classes, acc.itemsize, at.beside, dense)
    pairs, block_batch, launches = pairing(perm, lam, at.samples)
    sums, known = None, 0
    count = mean and labels and scales is None
    if count and rows <= common.KNOWN_ROWS:
        known = max(16, pow2(rows))
    elif count:
        sums = logits.new_empty((4, PARTIAL_SUMS), dtype=acc)
        own = {
            "sums_ptr": sums, "pairs": pairs, "rows": rows,
            "labels": Labels(target, target_b, weight, all_classes, inner, ignore_index),
            "BLOCK_ROWS": common.COUNT_BLOCK, "BLOCK_BATCH": block_batch,
            "PARTIAL_SUMS": PARTIAL_SUMS,
        }  # fmt: skip
        launches.append(Launch(divisors_kernel, PARTIAL_SUMS, own, 4, False))
    own_targets, other_targets = Matrix(target, 0, 0, 0), Matrix(target_b, 0, 0, 0)
    target_vec = partner_vec = 1
    if not labels:
        partner = target if target_b is None else target_b
        own_targets, other_targets = matrix(target), matrix(partner)
        target_vec, partner_vec = at.vector(own_targets), at.vector(other_targets)
    options = constants(
        Options, LABELS=labels, SPATIAL=inner > 1, BESIDE=at.beside, PER_SAMPLE=lam.ndim == 1,
        MEAN=mean, SMOOTH=eps != 0, DENSE=dense, Z_LOSS=z_loss != 0, CAPPED=softcap != 0,
        FORWARD=forward, GRADIENT=out is not None, RESCALE=rescale, SHARD=shard,
        INPLACE=forward and out is logits,
    )  # fmt: skip
    row_tiles = cdiv(n, block_rows)
    tile = constants(
        Tile, BLOCK_ROWS=block_rows, BLOCK_CLASSES=block_classes, WHOLE=block_classes >= classes,
        VEC=at.vector(z, g), TARGET_VEC=target_vec, PARTNER_VEC=partner_vec,
        ALONG=common.vector(2, at.along), BLOCK_BATCH=block_batch, BLOCK_LABELS=known,
        PARTIAL_SUMS=PARTIAL_SUMS,
    )  # fmt: skip
    args = {
        "logits": z, "out": g, "target": own_targets, "partner": other_targets, "pairs": pairs,
        "classes": classes, "inner": inner, "total_rows": rows, "row_tiles": row_tiles,
        "loss_ptr": losses, "stats_ptr": stats, "grad_ptr": grad,
        "grad_stride": int(reduction == "none"), "weight_ptr": weight, "sums_ptr": sums,
        "scales_ptr": scales, "ignore_index": ignore_index,
        "first_class": class_offset if shard else None,
        "all_classes": all_classes if shard else None, "z_loss": z_loss, "softcap": softcap,
        "mean_scale": 1 / rows if mean else 1.0, "OPT": options, "TILE": tile,
        **smoothing(eps, all_classes),
    }  # fmt: skip
    warps = common.warps_for(block_rows * block_classes * acc.itemsize, BYTES_PER_THREAD)
    return [*launches, Launch(loss_kernel, at.outer * row_tiles, args, warps, False)]
