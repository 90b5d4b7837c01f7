"""Triton kernels of mixing and soft targets, forward and backward, in place and out of place.

A tensor is addressed as (outer, B, inner) with strides; ``k`` numbers rows of the batch. All are
launched without fused multiply-add, since the bits of a mix are part of the contract. A row
whose index is out of range or used twice gets NaN coefficients, so the row becomes NaN; an index
out of range reads row 0. Importing mmix_fast does not import this module, nor triton.
"""
# No `from __future__ import annotations`: triton reads the annotations of a kernel's parameters.

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def rounded(v, dtype: tl.constexpr):
    """v rounded to dtype, to nearest even; to 16-bit types through float32, as in torch."""
    if dtype == tl.float16 or dtype == tl.bfloat16:
        v = v.to(tl.float32)
    if INTERPRETED and dtype == tl.bfloat16:  # the interpreter's own cast truncates
        bits = v.to(tl.uint32, bitcast=True)
        near = tl.where(v != v, bits | 0x400000, bits + 0x7FFF + ((bits >> 16) & 1))
        result = (near >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = v.to(dtype)
    return result


@triton.jit
def aligned(n, VEC: tl.constexpr):
    """n, in a form that tells the compiler it is a multiple of VEC; 16-byte accesses need this."""
    return n // VEC * VEC


@triton.constexpr_function
def acc_of(dtype):
    """The compute dtype for tensors of dtype."""
    return tl.float64 if dtype == tl.float64 else tl.float32


@triton.jit
def number(v, acc: tl.constexpr):
    """A float argument as acc. In the interpreter, tl.cast would convert through float32."""
    return tl.full((), v, acc)


@triton.jit
def uses_at(i, live, perm_ptr, uses_ptr, B, BLOCK_BATCH: tl.constexpr):
    """How many rows name row i as partner: counted here if BLOCK_BATCH >= B, loaded if it is 0."""
    if BLOCK_BATCH > 0:
        every = tl.arange(0, BLOCK_BATCH)
        j = tl.load(perm_ptr + every, mask=every < B, other=-1)
        inside = (j >= 0) & (j < B)
        count = tl.histogram(tl.where(inside, j, 0).to(tl.int32), BLOCK_BATCH, mask=inside)
        uses = tl.gather(count, tl.where(live, i, 0).to(tl.int32), 0)
    else:
        uses = tl.load(uses_ptr + i, mask=live, other=0)
    return uses


@triton.jit
def partner_of(k, live, perm_ptr, uses_ptr, B, BLOCK_BATCH: tl.constexpr):
    """(j, good): the partners of rows k, always inside the batch; good if the index is valid."""
    j = tl.load(perm_ptr + k, mask=live, other=-1)
    inside = (j >= 0) & (j < B)
    j = tl.where(inside, j, 0)
    return j, inside & (uses_at(j, live, perm_ptr, uses_ptr, B, BLOCK_BATCH) == 1)


@triton.jit
def blend(a, b, own, other):
    """fl(fl(a*own) + fl(b*other)) rounded to own's dtype; a side with coefficient 0 is left out."""
    acc: tl.constexpr = acc_of(own.dtype)
    mixed = rounded(a * own.to(acc) + b * other.to(acc), own.dtype)
    return tl.where(b == 0, own, tl.where(a == 0, other, mixed))


@triton.jit
def blend_adjoint(a, b, own, other):
    """blend where a + b need not be 1: if one coefficient is 0, the other side is still scaled."""
    acc: tl.constexpr = acc_of(own.dtype)
    alone = tl.where(a != 0, a * own.to(acc), tl.where(b != 0, b * other.to(acc), 0.0))
    scaled = ((a == 0) | (b == 0)) & (a + b != 1)
    return tl.where(scaled, rounded(alone, own.dtype), blend(a, b, own, other))


@triton.jit
def coefficients(own_row, k, live, good, lam_ptr, lam_stride, acc: tl.constexpr):
    """(lam[own_row], 1 - lam[k]), rounded in acc as in the formula; NaN where not good."""
    nan = tl.full((), float("nan"), acc)
    a = tl.load(lam_ptr + own_row * lam_stride, mask=live, other=0).to(acc)
    b = 1 - tl.load(lam_ptr + k * lam_stride, mask=live, other=0).to(acc)
    return tl.where(good, a, nan), tl.where(good, b, nan)


@triton.jit
def tile_columns(tile, inner, BLOCK_COLS: tl.constexpr):
    """(outer index, columns, mask) of one tile of BLOCK_COLS columns."""
    tiles = tl.cdiv(inner, BLOCK_COLS)
    c = (tile % tiles).to(tl.int64) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    return (tile // tiles).to(tl.int64), c, c < inner


@triton.jit
def mix_tile(
    pid, x_ptr, out_ptr, perm_ptr, lam_ptr, uses_ptr, B, inner, row_tiles, lam_stride,
    x_outer, x_row, x_col, out_outer, out_row, out_col,
    ADJOINT: tl.constexpr, INPLACE: tl.constexpr,
    BLOCK_BATCH: tl.constexpr, VEC: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK_ROWS rows x BLOCK_COLS columns. INPLACE: a slab, i.e. BLOCK_ROWS >= B, so
    it holds whole columns.

    Row k mixes with j = perm[k]. ADJOINT scatters to row j, so it needs no inverse permutation:
    out[j] = lam[j]*x[j] + (1-lam[k])*x[k].
    """
    acc: tl.constexpr = acc_of(x_ptr.dtype.element_ty)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    inner = aligned(inner, VEC)
    x_row, out_row = aligned(x_row, VEC), aligned(out_row, VEC)
    x_outer, out_outer = aligned(x_outer, VEC), aligned(out_outer, VEC)
    # Row tiles are the fastest index: programs that run together share columns, so the second read
    # of a row, as a partner, hits the L2 cache.
    o, c, in_column = tile_columns(pid // row_tiles, inner, BLOCK_COLS)
    k = (pid % row_tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    live = k < B
    j, good = partner_of(k, live, perm_ptr, uses_ptr, B, BLOCK_BATCH)
    own, other = (j, k) if ADJOINT else (k, j)
    a, b = coefficients(own, k, live, good, lam_ptr, lam_stride, acc)
    x_cols = (o * x_outer + c * x_col)[None, :]
    out_cols = (o * out_outer + c * out_col)[None, :]
    if INPLACE:
        live = live & (b != 0)  # a row with lam = 1 is not written
    mask = live[:, None] & in_column[None, :]
    mine = tl.load(x_ptr + (own * x_row)[:, None] + x_cols, mask=mask)
    theirs = tl.load(x_ptr + (other * x_row)[:, None] + x_cols, mask=mask)
    a, b = a[:, None], b[:, None]
    mixed = blend_adjoint(a, b, mine, theirs) if ADJOINT else blend(a, b, mine, theirs)
    if INPLACE:
        # Hazard: a row that one thread loads as a partner is stored by another thread of this
        # program. All loads must finish before the first store. No other program has these columns.
        tl.debug_barrier()
    if ADJOINT:
        mask = mask & good[:, None]
        # An output row that no index names, or several, has no value: it becomes NaN.
        lost = live & (uses_at(k, live, perm_ptr, uses_ptr, B, BLOCK_BATCH) != 1)
        if tl.sum(lost.to(tl.int32), 0) > 0:
            nan = rounded(tl.full((BLOCK_ROWS, BLOCK_COLS), float("nan"), acc), dtype)
            at = out_ptr + (k * out_row)[:, None] + out_cols
            tl.store(at, nan, mask=lost[:, None] & in_column[None, :])
    tl.store(out_ptr + (own * out_row)[:, None] + out_cols, mixed, mask=mask)


@triton.jit
def targets_tile(
    pid, target_ptr, target_b_ptr, out_ptr, perm_ptr, lam_ptr, uses_ptr, B, C, inner, sample,
    row_tiles, lam_stride, ignore_index, keep, hot, base,
    LABELS: tl.constexpr, WIDE: tl.constexpr, BLOCK_BATCH: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Soft targets (B, sample = C*inner), contiguous, from labels (B, inner) or float targets.

    The partners' targets are rows of target_b; perm None: row by row. keep = 1-eps, base = eps/C,
    hot = keep + base. WIDE: float64 arithmetic.
    """
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    _, c, in_column = tile_columns(pid // row_tiles, sample, BLOCK_COLS)
    k = (pid % row_tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    live = k < B
    j, good = k, live
    if perm_ptr is not None:
        j, good = partner_of(k, live, perm_ptr, uses_ptr, B, BLOCK_BATCH)
    a, b = coefficients(k, k, live, good, lam_ptr, lam_stride, acc)
    mask = live[:, None] & in_column[None, :]
    keep, base = number(keep, acc), number(base, acc)
    if LABELS:
        own = (k * inner)[:, None] + (c % inner)[None, :]
        other = (j * inner)[:, None] + (c % inner)[None, :]
        label = (c // inner)[None, :]
        hot = number(hot, acc)
        q_own = soft(target_ptr + own, mask, label, C, ignore_index, hot, base)
        q_other = soft(target_b_ptr + other, mask, label, C, ignore_index, hot, base)
    else:
        own = (k * sample)[:, None] + c[None, :]
        other = (j * sample)[:, None] + c[None, :]
        q_own = tl.load(target_ptr + own, mask=mask, other=0).to(acc)
        q_other = tl.load(target_b_ptr + other, mask=mask, other=0).to(acc)
        q_own = keep * q_own + base
        q_other = keep * q_other + base
    mixed = blend(a[:, None], b[:, None], q_own, q_other)
    at = out_ptr + (k * sample)[:, None] + c[None, :]
    tl.store(at, rounded(mixed, out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def soft(at, mask, label, C, ignore_index, hot, base):
    """q(y) at each class: zero where ignored, NaN where the label is out of range."""
    y = tl.load(at, mask=mask, other=ignore_index)
    q = tl.where(y == label, hot, base)
    q = tl.where((y >= 0) & (y < C), q, float("nan"))
    return tl.where(y == ignore_index, 0.0, q)


@triton.jit
def mix_kernel(
    x_ptr, out_ptr, perm_ptr, lam_ptr, uses_ptr, B, inner, row_tiles, lam_stride,
    x_outer, x_row, x_col, out_outer, out_row, out_col,
    ADJOINT: tl.constexpr, INPLACE: tl.constexpr,
    BLOCK_BATCH: tl.constexpr, VEC: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    mix_tile(
        tl.program_id(0), x_ptr, out_ptr, perm_ptr, lam_ptr, uses_ptr, B, inner, row_tiles,
        lam_stride, x_outer, x_row, x_col, out_outer, out_row, out_col,
        ADJOINT, INPLACE, BLOCK_BATCH, VEC, BLOCK_ROWS, BLOCK_COLS,
    )  # fmt: skip


@triton.jit
def targets_kernel(
    target_ptr, target_b_ptr, soft_ptr, perm_ptr, lam_ptr, uses_ptr, B, C, soft_inner, sample,
    soft_row_tiles, lam_stride, ignore_index, keep: tl.float64, hot: tl.float64, base: tl.float64,
    LABELS: tl.constexpr, WIDE: tl.constexpr, BLOCK_BATCH: tl.constexpr,
    SOFT_BLOCK_ROWS: tl.constexpr, SOFT_BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    targets_tile(
        tl.program_id(0), target_ptr, target_b_ptr, soft_ptr, perm_ptr, lam_ptr, uses_ptr, B, C,
        soft_inner, sample, soft_row_tiles, lam_stride, ignore_index, keep, hot, base,
        LABELS, WIDE, BLOCK_BATCH, SOFT_BLOCK_ROWS, SOFT_BLOCK_COLS,
    )  # fmt: skip


@triton.jit
def batch_kernel(
    x_ptr, perm_ptr, lam_ptr, uses_ptr, B, inner, lam_stride, x_outer, x_row, x_col,
    target_ptr, soft_ptr, C, soft_inner, sample, soft_row_tiles, ignore_index,
    keep: tl.float64, hot: tl.float64, base: tl.float64, mix_programs,
    LABELS: tl.constexpr, WIDE: tl.constexpr, BLOCK_BATCH: tl.constexpr, VEC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, SOFT_BLOCK_ROWS: tl.constexpr,
    SOFT_BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """One launch: the first mix_programs programs mix x in place, the rest make soft targets."""
    pid = tl.program_id(0)
    if pid < mix_programs:
        mix_tile(
            pid, x_ptr, x_ptr, perm_ptr, lam_ptr, uses_ptr, B, inner, 1, lam_stride,
            x_outer, x_row, x_col, x_outer, x_row, x_col, False, True, BLOCK_BATCH, VEC,
            BLOCK_ROWS, BLOCK_COLS,
        )  # fmt: skip
    else:
        targets_tile(
            pid - mix_programs, target_ptr, target_ptr, soft_ptr, perm_ptr, lam_ptr, uses_ptr, B, C,
            soft_inner, sample, soft_row_tiles, lam_stride, ignore_index, keep, hot, base,
            LABELS, WIDE, BLOCK_BATCH, SOFT_BLOCK_ROWS, SOFT_BLOCK_COLS,
        )  # fmt: skip
