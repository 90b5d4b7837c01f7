"""The Triton kernel of cutmix_: like mix_kernel in place, but each row changes only in its box."""
# No `from __future__ import annotations`: triton reads the annotations of a kernel's parameters.

import triton
import triton.language as tl

from .kernels import acc_of, aligned, blend, coefficients, partner_of, tile_columns


@triton.jit
def between(position, first, last):
    return (first[:, None] <= position[None, :]) & (position[None, :] < last[:, None])


@triton.jit
def in_box(mask, box, row, live, column):
    """mask of (row, column), without the elements outside their row's Box."""
    edges = box.ptr + row * box.stride
    top, bottom = tl.load(edges, mask=live, other=0), tl.load(edges + 1, mask=live, other=0)
    left, right = tl.load(edges + 2, mask=live, other=0), tl.load(edges + 3, mask=live, other=0)
    mask = mask & between(column // box.y_every % box.height, top, bottom)
    return mask & between(column // box.x_every % box.width, left, right)


@triton.jit
def coefficients_in_box(row, live, good, lam_ptr, lam_stride, dtype: tl.constexpr):
    """coefficients of rows; (0, 1) in integer dtypes, which are pasted as bits and know no NaN: a
    row with a bad index keeps its own, (1, 0)."""
    if dtype.is_int():
        a, b = (good == 0).to(tl.float32), good.to(tl.float32)
    else:
        a, b = coefficients(row, row, live, good, lam_ptr, lam_stride, acc_of(dtype))
    return a, b


@triton.jit
def blend_in_box(a, b, own_at, mask, theirs):
    """blend of the rows at own_at with theirs; bits need no own."""
    if theirs.dtype.is_int():
        mixed = theirs
    else:
        mixed = blend(a[:, None], b[:, None], tl.load(own_at, mask=mask), theirs)
    return mixed


@triton.jit
def cutmix_kernel(
    x_ptr, perm_ptr, lam_ptr, uses_ptr, box, B, inner, lam_stride, x_outer, x_row, x_col,
    BLOCK_BATCH: tl.constexpr, VEC: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """One tile: BLOCK_ROWS >= B rows x BLOCK_COLS columns of x.

    Elements outside a row's box are not written, and read only as part of a partner.
    """
    inner, x_row, x_outer = aligned(inner, VEC), aligned(x_row, VEC), aligned(x_outer, VEC)
    o, c, in_column = tile_columns(tl.program_id(0), inner, BLOCK_COLS)
    k = tl.arange(0, BLOCK_ROWS).to(tl.int64)
    live = k < B
    j, good = partner_of(k, live, perm_ptr, uses_ptr, B, BLOCK_BATCH)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    a, b = coefficients_in_box(k, live, good, lam_ptr, lam_stride, dtype)
    mask = (live & (b != 0))[:, None] & in_column[None, :]
    mask = in_box(mask, box, k, live, o * inner + c)
    x_cols = (o * x_outer + c * x_col)[None, :]
    mine_at = x_ptr + (k * x_row)[:, None] + x_cols
    theirs = tl.load(x_ptr + (j * x_row)[:, None] + x_cols, mask=mask)
    mixed = blend_in_box(a, b, mine_at, mask, theirs)
    tl.debug_barrier()  # hazard: see mix_tile
    tl.store(mine_at, mixed, mask=mask)
