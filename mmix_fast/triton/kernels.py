"""Triton kernels of mixing and soft targets, forward and backward, in place and out of place.

A tensor is seen as (outer, B, inner) with strides; ``k`` numbers rows of the batch. All are
launched without fused multiply-add, since the bits of a mix are part of the contract. An index that
is out of range or used twice reads row 0 and makes the coefficients NaN, which poisons its row.
Imported by backend.py alone: importing mmix_fast does not import triton.
"""
# No `from __future__ import annotations`: triton reads the annotations of a kernel's parameters.

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def rounded(v, dtype: tl.constexpr):
    """v in dtype, to nearest even; 16-bit types by way of float32, as torch does."""
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
    """n, a multiple of VEC, in a form that tells the compiler so: 16-byte accesses need it."""
    return n // VEC * VEC


@triton.constexpr_function
def acc_of(dtype):
    """The dtype of the arithmetic for x of dtype."""
    return tl.float64 if dtype == tl.float64 else tl.float32


@triton.jit
def number(v, acc: tl.constexpr):
    """A float argument in acc; tl.cast would go by way of float32 in the interpreter."""
    return tl.full((), v, acc)


@triton.jit
def uses_at(i, live, perm_ptr, uses_ptr, B, ALL: tl.constexpr):
    """How many rows name row i as their partner: counted here for B <= ALL, else looked up."""
    if ALL > 0:
        every = tl.arange(0, ALL)
        j = tl.load(perm_ptr + every, mask=every < B, other=-1)
        inside = (j >= 0) & (j < B)
        count = tl.histogram(tl.where(inside, j, 0).to(tl.int32), ALL, mask=inside)
        uses = tl.gather(count, tl.where(live, i, 0).to(tl.int32), 0)
    else:
        uses = tl.load(uses_ptr + i, mask=live, other=0)
    return uses


@triton.jit
def partner_of(k, live, perm_ptr, uses_ptr, B, ALL: tl.constexpr):
    """(j, good): the partner of rows k, inside the batch whatever perm holds."""
    j = tl.load(perm_ptr + k, mask=live, other=-1)
    inside = (j >= 0) & (j < B)
    j = tl.where(inside, j, 0)
    return j, inside & (uses_at(j, live, perm_ptr, uses_ptr, B, ALL) == 1)


@triton.jit
def blend(a, b, own, other):
    """fl(fl(a*own) + fl(b*other)) rounded to own's dtype; a side with coefficient 0 is absent."""
    acc: tl.constexpr = acc_of(own.dtype)
    mixed = rounded(a * own.to(acc) + b * other.to(acc), own.dtype)
    return tl.where(b == 0, own, tl.where(a == 0, other, mixed))


@triton.jit
def blend_adjoint(a, b, own, other):
    """blend where a + b need not be 1: beside an absent side the other keeps its coefficient."""
    acc: tl.constexpr = acc_of(own.dtype)
    alone = tl.where(a != 0, a * own.to(acc), tl.where(b != 0, b * other.to(acc), 0.0))
    scaled = ((a == 0) | (b == 0)) & (a + b != 1)
    return tl.where(scaled, rounded(alone, own.dtype), blend(a, b, own, other))


@triton.jit
def coefficients(own_row, k, live, good, lam_ptr, lam_stride, acc: tl.constexpr):
    """lam of own_row and 1-lam of k, rounded in acc as the formula says; NaN where not good."""
    nan = tl.full((), float("nan"), acc)
    a = tl.load(lam_ptr + own_row * lam_stride, mask=live, other=0).to(acc)
    b = 1 - tl.load(lam_ptr + k * lam_stride, mask=live, other=0).to(acc)
    return tl.where(good, a, nan), tl.where(good, b, nan)


@triton.jit
def tile_columns(tile, inner, W: tl.constexpr):
    """(outer index, columns, mask) of one tile of W columns."""
    tiles = tl.cdiv(inner, W)
    c = (tile % tiles).to(tl.int64) * W + tl.arange(0, W)
    return (tile // tiles).to(tl.int64), c, c < inner


@triton.jit
def mix_tile(
    pid, x_ptr, out_ptr, perm_ptr, lam_ptr, uses_ptr, B, inner, row_tiles, lam_stride,
    x_outer, x_row, x_col, out_outer, out_row, out_col,
    ADJOINT: tl.constexpr, INPLACE: tl.constexpr,
    ALL: tl.constexpr, VEC: tl.constexpr, P: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """P rows x W columns. INPLACE is the slab: P >= B, so the tile holds whole columns.

    Row k mixes with j = perm[k]. The adjoint sends what row k lent back to row j, which needs no
    inverse permutation: out[j] = lam[j]*x[j] + (1-lam[k])*x[k].
    """
    acc: tl.constexpr = acc_of(x_ptr.dtype.element_ty)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    inner = aligned(inner, VEC)
    x_row, out_row = aligned(x_row, VEC), aligned(out_row, VEC)
    x_outer, out_outer = aligned(x_outer, VEC), aligned(out_outer, VEC)
    # Row tiles come fastest: programs that run together share columns, so that the second read of
    # a row, as somebody's partner, is served by the L2 cache.
    o, c, in_column = tile_columns(pid // row_tiles, inner, W)
    k = (pid % row_tiles * P + tl.arange(0, P)).to(tl.int64)
    live = k < B
    j, good = partner_of(k, live, perm_ptr, uses_ptr, B, ALL)
    own, other = (j, k) if ADJOINT else (k, j)
    a, b = coefficients(own, k, live, good, lam_ptr, lam_stride, acc)
    x_cols = (o * x_outer + c * x_col)[None, :]
    out_cols = (o * out_outer + c * out_col)[None, :]
    if INPLACE:
        live = live & (b != 0)  # a row of lam = 1 stays as it is, untouched
    mask = live[:, None] & in_column[None, :]
    mine = tl.load(x_ptr + (own * x_row)[:, None] + x_cols, mask=mask)
    theirs = tl.load(x_ptr + (other * x_row)[:, None] + x_cols, mask=mask)
    a, b = a[:, None], b[:, None]
    mixed = blend_adjoint(a, b, mine, theirs) if ADJOINT else blend(a, b, mine, theirs)
    if INPLACE:
        # Hazard: a row that one thread loads as a partner is stored by another thread of this
        # program. Every load must be done before the first store. No other program comes here.
        tl.debug_barrier()
    if ADJOINT:
        mask = mask & good[:, None]
        # Rows that nobody names, or several do, have no value of their own.
        lost = live & (uses_at(k, live, perm_ptr, uses_ptr, B, ALL) != 1)
        if tl.sum(lost.to(tl.int32), 0) > 0:
            nan = rounded(tl.full((P, W), float("nan"), acc), dtype)
            at = out_ptr + (k * out_row)[:, None] + out_cols
            tl.store(at, nan, mask=lost[:, None] & in_column[None, :])
    tl.store(out_ptr + (own * out_row)[:, None] + out_cols, mixed, mask=mask)


@triton.jit
def mix_walk(
    pid, x_ptr, perm_ptr, lam_ptr, start_ptr, order_ptr, B, inner, lam_stride,
    x_outer, x_row, x_col, VEC: tl.constexpr, P: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """In place where a slab of all B rows does not fit: the rows in cycle order, P at a time.

    The partner of a row is the next one, or, at the end of a cycle, its head: saved in registers
    where an earlier tile has overwritten it.
    """
    acc: tl.constexpr = acc_of(x_ptr.dtype.element_ty)
    inner, x_row, x_outer = aligned(inner, VEC), aligned(x_row, VEC), aligned(x_outer, VEC)
    o, c, in_column = tile_columns(pid, inner, W)
    column = x_ptr + o * x_outer + c * x_col
    head = tl.full((), -1, tl.int64)
    saved = tl.load(column, mask=in_column)
    for t0 in range(0, B, P):
        t = t0 + tl.arange(0, P)
        live = t < B
        row = tl.load(order_ptr + t, mask=live, other=0).to(tl.int64)
        good = row >= 0
        row = tl.where(good, row, -1 - row)
        j = tl.where(good, tl.load(perm_ptr + row, mask=live, other=0), row)
        a, b = coefficients(row, row, live, good, lam_ptr, lam_stride, acc)
        behind = (tl.load(start_ptr + t, mask=live, other=t0) < t0) & (j == head)
        mask = (live & (b != 0))[:, None] & in_column[None, :]
        own_at = column[None, :] + (row * x_row)[:, None]
        mine = tl.load(own_at, mask=mask)
        ahead = mask & (behind == 0)[:, None]
        theirs = tl.load(column[None, :] + (j * x_row)[:, None], mask=ahead)
        mixed = blend(a[:, None], b[:, None], mine, tl.where(ahead, theirs, saved[None, :]))
        # The head of the cycle that this tile leaves open, if it lies in this tile.
        begin = tl.load(start_ptr + tl.minimum(t0 + P, B) - 1)
        if begin >= t0:
            head = tl.load(order_ptr + begin).to(tl.int64)
            head = tl.where(head >= 0, head, -1 - head)
            saved = tl.load(column + head * x_row, mask=in_column)
        # Hazard: as in mix_tile; later tiles load no row that this one stores.
        tl.debug_barrier()
        tl.store(own_at, mixed, mask=mask)


@triton.jit
def targets_tile(
    pid, target_ptr, out_ptr, perm_ptr, lam_ptr, uses_ptr, B, C, inner, sample, row_tiles,
    lam_stride, ignore_index, keep, hot, base,
    LABELS: tl.constexpr, WIDE: tl.constexpr, ALL: tl.constexpr, P: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Soft targets (B, sample = C*inner), contiguous: of labels (B, inner), or of float targets.

    keep = 1-eps, base = eps/C and hot is their sum. WIDE: float64 arithmetic.
    """
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    _, c, in_column = tile_columns(pid // row_tiles, sample, W)
    k = (pid % row_tiles * P + tl.arange(0, P)).to(tl.int64)
    live = k < B
    j, good = partner_of(k, live, perm_ptr, uses_ptr, B, ALL)
    a, b = coefficients(k, k, live, good, lam_ptr, lam_stride, acc)
    mask = live[:, None] & in_column[None, :]
    keep, base = number(keep, acc), number(base, acc)
    if LABELS:
        at = target_ptr + (c % inner)[None, :]
        label = (c // inner)[None, :]
        hot = number(hot, acc)
        q_own = soft(at + (k * inner)[:, None], mask, label, C, ignore_index, hot, base)
        q_other = soft(at + (j * inner)[:, None], mask, label, C, ignore_index, hot, base)
    else:
        at = target_ptr + c[None, :]
        q_own = tl.load(at + (k * sample)[:, None], mask=mask, other=0).to(acc)
        q_other = tl.load(at + (j * sample)[:, None], mask=mask, other=0).to(acc)
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
    ALL: tl.constexpr, VEC: tl.constexpr, P: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    mix_tile(
        tl.program_id(0), x_ptr, out_ptr, perm_ptr, lam_ptr, uses_ptr, B, inner, row_tiles,
        lam_stride, x_outer, x_row, x_col, out_outer, out_row, out_col,
        ADJOINT, INPLACE, ALL, VEC, P, W,
    )  # fmt: skip


@triton.jit
def walk_kernel(
    x_ptr, perm_ptr, lam_ptr, start_ptr, order_ptr, B, inner, lam_stride, x_outer, x_row, x_col,
    VEC: tl.constexpr, P: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    mix_walk(
        tl.program_id(0), x_ptr, perm_ptr, lam_ptr, start_ptr, order_ptr, B, inner, lam_stride,
        x_outer, x_row, x_col, VEC, P, W,
    )  # fmt: skip


@triton.jit
def targets_kernel(
    target_ptr, soft_ptr, perm_ptr, lam_ptr, uses_ptr, B, C, soft_inner, sample, soft_row_tiles,
    lam_stride, ignore_index, keep: tl.float64, hot: tl.float64, base: tl.float64,
    LABELS: tl.constexpr, WIDE: tl.constexpr, ALL: tl.constexpr, TP: tl.constexpr, TW: tl.constexpr,
):  # fmt: skip
    targets_tile(
        tl.program_id(0), target_ptr, soft_ptr, perm_ptr, lam_ptr, uses_ptr, B, C,
        soft_inner, sample, soft_row_tiles, lam_stride, ignore_index, keep, hot, base,
        LABELS, WIDE, ALL, TP, TW,
    )  # fmt: skip


@triton.jit
def batch_kernel(
    x_ptr, perm_ptr, lam_ptr, uses_ptr, B, inner, lam_stride, x_outer, x_row, x_col,
    target_ptr, soft_ptr, C, soft_inner, sample, soft_row_tiles, ignore_index,
    keep: tl.float64, hot: tl.float64, base: tl.float64, mix_programs,
    LABELS: tl.constexpr, WIDE: tl.constexpr, ALL: tl.constexpr, VEC: tl.constexpr,
    P: tl.constexpr, W: tl.constexpr, TP: tl.constexpr, TW: tl.constexpr,
):  # fmt: skip
    """The slab of x in the first programs, the soft targets in the rest: one launch for both."""
    pid = tl.program_id(0)
    if pid < mix_programs:
        mix_tile(
            pid, x_ptr, x_ptr, perm_ptr, lam_ptr, uses_ptr, B, inner, 1, lam_stride,
            x_outer, x_row, x_col, x_outer, x_row, x_col, False, True, ALL, VEC, P, W,
        )  # fmt: skip
    else:
        targets_tile(
            pid - mix_programs, target_ptr, soft_ptr, perm_ptr, lam_ptr, uses_ptr, B, C,
            soft_inner, sample, soft_row_tiles, lam_stride, ignore_index, keep, hot, base,
            LABELS, WIDE, ALL, TP, TW,
        )  # fmt: skip
