"""Triton kernels of mixing with a second batch, and of the gradients of both batches.

No row that is written is read as a partner. Rows and columns as in kernels.py.
"""
# No `from __future__ import annotations`: triton reads the annotations of a kernel's parameters.

import triton
import triton.language as tl

from .kernels import acc_of, aligned, blend, coefficients, rounded, tile_columns


@triton.jit
def mix_other_kernel(
    x_ptr, other_ptr, out_ptr, perm_ptr, lam_ptr, B, samples, inner, row_tiles, lam_stride,
    x_outer, x_row, x_col, out_outer, out_row, out_col, other_outer, other_row, other_col,
    INPLACE: tl.constexpr, VEC: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """One tile; perm_ptr None: row k mixes with row k of other. A bad index makes its row NaN."""
    acc: tl.constexpr = acc_of(x_ptr.dtype.element_ty)
    inner = aligned(inner, VEC)
    x_row, out_row, other_row = aligned(x_row, VEC), aligned(out_row, VEC), aligned(other_row, VEC)
    x_outer, out_outer = aligned(x_outer, VEC), aligned(out_outer, VEC)
    other_outer = aligned(other_outer, VEC)
    pid = tl.program_id(0)
    o, c, in_column = tile_columns(pid // row_tiles, inner, BLOCK_COLS)
    k = (pid % row_tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    live = k < B
    j = k
    if perm_ptr is not None:
        j = tl.load(perm_ptr + k, mask=live, other=0)
    good = (j >= 0) & (j < samples)
    a, b = coefficients(k, k, live, good, lam_ptr, lam_stride, acc)
    if INPLACE:
        live = live & (b != 0)  # a row with lam = 1 is not written
    mask = live[:, None] & in_column[None, :]
    x_at = x_ptr + (k * x_row)[:, None] + (o * x_outer + c * x_col)[None, :]
    mine = tl.load(x_at, mask=mask)
    other_cols = (o * other_outer + c * other_col)[None, :]
    theirs = tl.load(
        other_ptr + (j * other_row)[:, None] + other_cols, mask=mask & good[:, None], other=0
    )
    mixed = blend(a[:, None], b[:, None], mine, theirs)
    out_cols = (o * out_outer + c * out_col)[None, :]
    tl.store(out_ptr + (k * out_row)[:, None] + out_cols, mixed, mask=mask)


@triton.jit
def sum_rows_kernel(
    x_ptr, out_ptr, weight_ptr, order_ptr, begin_ptr, B, inner, row_tiles, weight_stride,
    x_outer, x_row, x_col, out_outer, out_row, out_col,
    VEC: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """out[k] = the sum of weight[i]*x[i] over i in order[begin[k]:begin[k+1]]; else of i = k.

    A term with weight 0 is left out. The program takes as many steps as its longest sum has terms.
    """
    acc: tl.constexpr = acc_of(x_ptr.dtype.element_ty)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    inner = aligned(inner, VEC)
    x_row, out_row = aligned(x_row, VEC), aligned(out_row, VEC)
    x_outer, out_outer = aligned(x_outer, VEC), aligned(out_outer, VEC)
    pid = tl.program_id(0)
    o, c, in_column = tile_columns(pid // row_tiles, inner, BLOCK_COLS)
    k = (pid % row_tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    live = k < B
    x_cols = x_ptr + (o * x_outer + c * x_col)[None, :]
    total = tl.full((BLOCK_ROWS, BLOCK_COLS), -0.0, acc)  # adding to it keeps all bits
    some = tl.zeros((BLOCK_ROWS,), tl.int32)
    first = k
    count = live.to(tl.int64)
    if order_ptr is not None:
        first = tl.load(begin_ptr + k, mask=live, other=0)
        count = tl.load(begin_ptr + k + 1, mask=live, other=0) - first
    for step in range(tl.max(count, 0)):
        there = step < count
        row = first + step
        if order_ptr is not None:
            row = tl.load(order_ptr + row, mask=there, other=0)
        weight = tl.load(weight_ptr + row * weight_stride, mask=there, other=0).to(acc)
        there = there & (weight != 0)
        mask = there[:, None] & in_column[None, :]
        term = tl.load(x_cols + (row * x_row)[:, None], mask=mask, other=0).to(acc)
        total = tl.where(there[:, None], total + weight[:, None] * term, total)
        some = some | there.to(tl.int32)
    total = tl.where((some > 0)[:, None], total, 0.0)
    at = out_ptr + (k * out_row)[:, None] + (o * out_outer + c * out_col)[None, :]
    tl.store(at, rounded(total, dtype), mask=live[:, None] & in_column[None, :])
