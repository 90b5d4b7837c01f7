"""Triton kernels of the mixed cross-entropy: loss, statistics and gradient, a tile of rows at once.

Logits are addressed as (outer, n, C) with strides: row s of outer index o. Without inner dimensions
the rows are the batch (outer = 1), else each sample is an outer index (SPATIAL). BESIDE: the class
stride is not 1; logits usually have stride 1 along rows, e.g. (B, C, H, W). With
    t[c] = weight[c] * (base + [c == y]*hot + [c == y']*hot')
or, for float targets, weight[c]*scale*((1-eps)*(lam*a[c] + (1-lam)*b[c]) + eps/C), a row has:
    loss = sum_c t[c]*(lse - z[c]) + z_coef*lse**2
    gradient[c] = (sum_c t[c] + 2*z_coef*lse)*softmax[c] - t[c]
If a row's index or label is bad, sum_c t[c] is NaN, and so are its loss and gradient.
In a FORWARD of a SHARD the sums over c are those of its own classes. A backward gets the sums over
all classes as statistics.
"""

import triton
import triton.language as tl

from .arguments import Labels
from .kernels import acc_of, aligned, number, rounded
from .loss_logits import Logits, label_term, load_logits, through_cap
from .loss_rows import Rows, cells, row_at, tile_rows
from .loss_targets import (
    Targets,
    divisor_sums,
    float_coefficients,
    label_coefficients,
    row_targets,
)


@triton.jit
def divisors_kernel(
    sums_ptr, labels, pairs, rows, BLOCK_ROWS: tl.constexpr, BLOCK_BATCH: tl.constexpr,
    PARTIAL_SUMS: tl.constexpr,
):  # fmt: skip
    """sums[:, program] = divisor_sums over every PARTIAL_SUMS-th block of rows; deterministic."""
    acc: tl.constexpr = sums_ptr.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    own, other = tl.zeros((), acc), tl.zeros((), acc)
    joint, count = tl.zeros((), acc), tl.zeros((), acc)
    for first in range(pid * BLOCK_ROWS, rows, PARTIAL_SUMS * BLOCK_ROWS):
        more = divisor_sums(first, rows, labels, pairs, acc, BLOCK_ROWS, BLOCK_BATCH)
        own, other, joint, count = own + more[0], other + more[1], joint + more[2], count + more[3]
    tl.store(sums_ptr + pid, own)
    tl.store(sums_ptr + pid + PARTIAL_SUMS, other)
    tl.store(sums_ptr + pid + 2 * PARTIAL_SUMS, joint)
    tl.store(sums_ptr + pid + 3 * PARTIAL_SUMS, count)


@triton.jit
def finite_max(top):
    """The pivot: the max, or 0 if the max is -inf, since -inf - -inf would give NaN."""
    return tl.where(top == float("-inf"), 0, top)


@triton.jit
def weighted_sum(t, z, pivot):
    """sum_c t[c]*(z[c] - pivot) of each row; a term with coefficient 0 is left out."""
    return tl.sum(tl.where(t == 0, 0, t * (z - pivot[:, None])), 1)


@triton.jit
def read_whole(z, row, targets, pivot, OPT, TILE):
    """Pass 1 over rows that one block of classes holds.

    Returns (logits, their exp, t), which pass 2 takes from registers, and (pivot, sum of exp,
    dot = sum_c t[c]*(z[c] - pivot) without the labels' own terms, mass = sum of t).
    """
    acc: tl.constexpr = row.lam.dtype
    c = tl.arange(0, TILE.BLOCK_CLASSES)
    mask = row.live[:, None] & (c < targets.classes)[None, :]
    block = load_logits(z, c, OPT)
    e, mass = block, row.mass
    total, dot = tl.zeros((TILE.BLOCK_ROWS,), acc), tl.zeros((TILE.BLOCK_ROWS,), acc)
    if OPT.DENSE:
        t = row_targets(c, mask, row, targets, OPT)
        mass = tl.sum(t, 1)
    else:
        t = mask.to(acc)
    if OPT.FORWARD:
        pivot = finite_max(tl.max(block, 1))
        e = tl.exp(block - pivot[:, None])
        total = tl.sum(e, 1)
        if OPT.SMOOTH or OPT.DENSE:
            dot = weighted_sum(t, block, pivot)
    return block, e, t, pivot, total, dot, mass


@triton.jit
def read_blocks(z, row, targets, pivot, OPT, TILE):
    """Pass 1 over longer rows, a block of classes at a time: (pivot, sum of exp, dot, mass) as in
    read_whole, of the classes so far; the earlier ones are rescaled where the pivot moves."""
    acc: tl.constexpr = row.lam.dtype
    top = tl.full((TILE.BLOCK_ROWS,), float("-inf"), acc)
    total, dot = tl.zeros((TILE.BLOCK_ROWS,), acc), tl.zeros((TILE.BLOCK_ROWS,), acc)
    mass = tl.zeros((TILE.BLOCK_ROWS,), acc)
    for c0 in range(0, targets.classes, TILE.BLOCK_CLASSES):
        c = c0 + tl.arange(0, TILE.BLOCK_CLASSES)
        mask = row.live[:, None] & (c < targets.classes)[None, :]
        if OPT.DENSE:
            t = row_targets(c, mask, row, targets, OPT)
        else:
            t = mask.to(acc)
        if OPT.FORWARD:
            block = load_logits(z, c, OPT)
            new_top = tl.maximum(top, tl.max(block, 1))
            new = finite_max(new_top)
            total = total * tl.exp(top - new) + tl.sum(tl.exp(block - new[:, None]), 1)
            if OPT.SMOOTH or OPT.DENSE:
                dot += mass * (pivot - new)
                dot += weighted_sum(t, block, new)
            top, pivot = new_top, new
        if OPT.SMOOTH or OPT.DENSE:
            mass += tl.sum(t, 1)
    return pivot, total, dot, mass if OPT.DENSE else row.mass


@triton.jit
def whole_dot(z, row, dot, pivot, OPT):
    """sum_c t[c]*(z[c] - pivot) of each row, from ``dot`` of pass 1. Reads the labels' logits."""
    if not OPT.DENSE:  # t is base, plus hot at the labels; a term with coefficient 0 is left out
        dot = tl.where(row.base == 0, 0, row.base * dot)
        dot += label_term(z, row.own_label, row.own_hot, pivot, OPT)
        dot += label_term(z, row.other_label, row.other_hot, pivot, OPT)
    return dot


@triton.jit
def write_part(part_ptr, rows, row, z, sums, OPT):
    """Stores what a shard has of each row: see cross_entropy_part in schemas.py."""
    pivot, total, dot, mass = sums
    dot = whole_dot(z, row, dot, pivot, OPT)
    mass = tl.where(row.bad, float("nan"), mass)
    at = part_ptr + 4 * rows.number
    tl.store(at, tl.where(row.live, pivot, 0), mask=rows.here)
    tl.store(at + 1, tl.where(row.live, tl.log(total), 0), mask=rows.here)
    tl.store(at + 2, tl.where(row.live, dot, 0), mask=rows.here)
    tl.store(at + 3, tl.where(row.live, mass, 0), mask=rows.here)


@triton.jit
def write_loss(loss_ptr, stats_ptr, rows, row, z, sums, OPT):
    """Stores loss and statistics of each row, and returns the log of its sum of exp."""
    pivot, total, dot, mass = sums
    log_sum = tl.log(total)
    dot = whole_dot(z, row, dot, pivot, OPT)
    loss = mass * log_sum - dot
    if OPT.Z_LOSS:
        lse = pivot + log_sum
        loss += tl.where(row.z_coef == 0, 0, row.z_coef * lse * lse)
    loss = tl.where(row.live, tl.where(row.bad, float("nan"), loss), 0)
    if OPT.MEAN:
        loss = tl.where(row.undefined, float("nan"), loss)
    tl.store(loss_ptr + rows.number, loss, mask=rows.here)
    if stats_ptr is not None:
        tl.store(stats_ptr + 2 * rows.number, pivot, mask=rows.here)
        tl.store(stats_ptr + 2 * rows.number + 1, log_sum, mask=rows.here)
    return log_sum


@triton.jit
def write_gradient(out_at, out_col, upstream, row, targets, z, kept, stats, OPT, TILE):
    """Pass 2: the gradient, combined in acc and rounded once. ``kept``: of read_whole."""
    pivot, log_sum, mass = stats
    kept_z, kept_e, kept_t = kept
    if OPT.Z_LOSS:
        mass += 2 * row.z_coef * (pivot + log_sum)
    mass = tl.where(row.bad, float("nan"), mass)
    # Computed from log_sum in the forward too, so that a second backward gives the same bits.
    share = 1 / tl.exp(log_sum)
    # WHOLE takes this loop too, for one iteration, and recomputes the class numbers. Reusing
    # those of pass 1 would cost a register per element, and spills.
    for c0 in range(0, targets.classes, TILE.BLOCK_CLASSES):
        c = c0 + tl.arange(0, TILE.BLOCK_CLASSES)
        in_class = (c < targets.classes)[None, :]
        if TILE.WHOLE:
            block = kept_z
        else:
            block = load_logits(z, c, OPT)
        if TILE.WHOLE and OPT.FORWARD:
            p = kept_e * share[:, None]
        else:
            p = tl.exp(block - pivot[:, None]) * share[:, None]
        if TILE.WHOLE and OPT.DENSE:
            t = kept_t
        else:
            t = row_targets(c, row.live[:, None] & in_class, row, targets, OPT)
        g = (mass[:, None] * p - t) * upstream[:, None]
        if OPT.CAPPED:
            g = through_cap(g, block, z.softcap)
        g = rounded(tl.where(row.live[:, None], g, 0), out_at.dtype.element_ty)
        tl.store(cells(out_at, c, out_col), g, mask=z.here[:, None] & in_class)


@triton.jit
def loss_kernel(
    logits, out, target, partner, pairs, classes, inner, total_rows, row_tiles, loss_ptr, stats_ptr,
    grad_ptr, grad_stride, weight_ptr, sums_ptr, scales_ptr, ignore_index, first_class, all_classes,
    keep: tl.float64, base: tl.float64, z_loss: tl.float64, softcap: tl.float64,
    mean_scale: tl.float64, OPT, TILE,
):  # fmt: skip
    """A tile of rows: FORWARD writes loss and statistics, GRADIENT writes out (with upstream 1 in a
    FORWARD). The FORWARD of a SHARD writes its part of the sums instead, to stats_ptr.

    WHOLE: the logits are read once and stay in registers. Else BLOCK_CLASSES at a time, once for
    the online softmax and once for the gradient. out may be the logits: the thread that stores an
    element has loaded it before. A backward has the row's statistics in separate memory, so it
    needs no barrier. A FORWARD that is INPLACE does: every thread of a row loads the logits of its
    labels, which other threads store. RESCALE: out holds the gradient for upstream 1; only rows
    with another upstream are written.
    """
    acc: tl.constexpr = acc_of(logits.ptr.dtype.element_ty)
    if not OPT.BESIDE:
        classes = aligned(classes, TILE.ALONG)
    rows = tile_rows(tl.program_id(0), inner, pairs.batch, row_tiles, OPT, TILE)
    upstream = tl.full((TILE.BLOCK_ROWS,), 1, acc)
    if not OPT.FORWARD:
        at = grad_ptr + rows.number * grad_stride
        upstream = tl.load(at, mask=rows.here, other=1).to(acc)
    if OPT.RESCALE:
        here = rows.here & (upstream != 1)
        if tl.sum(here.to(tl.int32), 0) == 0:
            return
        rows = Rows(rows.outer, rows.index, rows.number, rows.sample, rows.inner, here)

    # The coefficients of each row.
    keep, base, softcap = number(keep, acc), number(base, acc), number(softcap, acc)
    if OPT.LABELS:
        labels = Labels(
            target.ptr, partner.ptr, weight_ptr, all_classes if OPT.SHARD else classes, rows.inner,
            ignore_index, first_class, classes,
        )  # fmt: skip
        row = label_coefficients(
            rows, total_rows, labels, pairs, sums_ptr, scales_ptr, keep, base, number(z_loss, acc),
            acc, OPT, TILE,
        )  # fmt: skip
        sides = None
    else:
        row, sides = float_coefficients(
            rows, target, partner, pairs, scales_ptr, keep, base, mean_scale, z_loss, acc, OPT, TILE
        )
    if OPT.SHARD and weight_ptr is not None:
        targets = Targets(classes, weight_ptr + first_class, sides)
    else:
        targets = Targets(classes, weight_ptr, sides)

    # Pass 1: statistics of the softmax.
    at, col = row_at(logits, rows.outer, rows.index, TILE.VEC, OPT)
    z = Logits(at, col, classes, rows.here, row.live, softcap)
    pivot, log_sum = tl.zeros((TILE.BLOCK_ROWS,), acc), tl.zeros((TILE.BLOCK_ROWS,), acc)
    if not OPT.FORWARD:
        at_stats = stats_ptr + (3 if OPT.SHARD else 2) * rows.number
        pivot = tl.load(at_stats, mask=rows.here, other=0)
        log_sum = tl.load(at_stats + 1, mask=rows.here, other=0)
    total, dot, mass = pivot, pivot, row.mass  # read below only where they were summed
    kept = (pivot, pivot, pivot)
    if TILE.WHOLE:
        block, e, t, pivot, total, dot, mass = read_whole(z, row, targets, pivot, OPT, TILE)
        kept = (block, e, t)
    elif OPT.FORWARD or (OPT.DENSE and not OPT.SHARD):
        pivot, total, dot, mass = read_blocks(z, row, targets, pivot, OPT, TILE)
    if OPT.SHARD and OPT.FORWARD:
        write_part(stats_ptr, rows, row, z, (pivot, total, dot, mass), OPT)
    elif OPT.SHARD:
        mass = tl.load(at_stats + 2, mask=rows.here, other=0)
    elif OPT.FORWARD:
        log_sum = write_loss(loss_ptr, stats_ptr, rows, row, z, (pivot, total, dot, mass), OPT)

    # Pass 2: the gradient.
    if OPT.GRADIENT:
        if OPT.INPLACE:
            # Hazard: see above. All threads have read the row before one of them writes to it.
            tl.debug_barrier()
        at, col = row_at(out, rows.outer, rows.index, TILE.VEC, OPT)
        write_gradient(at, col, upstream, row, targets, z, kept, (pivot, log_sum, mass), OPT, TILE)
