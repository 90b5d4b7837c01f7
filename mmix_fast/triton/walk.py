"""The Triton kernel of mix_ and cutmix_ for batches too large for a slab."""
# No `from __future__ import annotations`: triton reads the annotations of a kernel's parameters.

import triton
import triton.language as tl

from .cutmix import blend_in_box, coefficients_in_box, in_box
from .kernels import aligned, tile_columns


@triton.jit
def walk_kernel(
    x_ptr, perm_ptr, lam_ptr, start_ptr, order_ptr, box, B, inner, lam_stride, x_outer, x_row,
    x_col, VEC: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """In place if a slab of all B rows does not fit: the rows in cycle order, BLOCK_ROWS at a time.

    A row's partner is the next row, or, at the end of a cycle, the head (first row) of the cycle.
    The head is saved in registers, since an earlier tile may have overwritten it.
    With a box, each row changes only in its box (see cutmix_kernel).
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    inner, x_row, x_outer = aligned(inner, VEC), aligned(x_row, VEC), aligned(x_outer, VEC)
    o, c, in_column = tile_columns(tl.program_id(0), inner, BLOCK_COLS)
    column = x_ptr + o * x_outer + c * x_col
    head = tl.full((), -1, tl.int64)
    saved = tl.load(column, mask=in_column)
    for t0 in range(0, B, BLOCK_ROWS):
        t = t0 + tl.arange(0, BLOCK_ROWS)
        live = t < B
        row = tl.load(order_ptr + t, mask=live, other=0).to(tl.int64)
        good = row >= 0
        row = tl.where(good, row, -1 - row)
        j = tl.where(good, tl.load(perm_ptr + row, mask=live, other=0), row)
        a, b = coefficients_in_box(row, live, good, lam_ptr, lam_stride, dtype)
        behind = (tl.load(start_ptr + t, mask=live, other=t0) < t0) & (j == head)
        mask = (live & (b != 0))[:, None] & in_column[None, :]
        if box is not None:
            mask = in_box(mask, box, row, live, o * inner + c)
        own_at = column[None, :] + (row * x_row)[:, None]
        ahead = mask & (behind == 0)[:, None]
        theirs = tl.load(column[None, :] + (j * x_row)[:, None], mask=ahead)
        theirs = tl.where(ahead, theirs, saved[None, :])
        mixed = blend_in_box(a, b, own_at, mask, theirs)
        # Save the head of the last cycle of this tile, if it lies here: the next tile may need it.
        begin = tl.load(start_ptr + tl.minimum(t0 + BLOCK_ROWS, B) - 1)
        if begin >= t0:
            head = tl.load(order_ptr + begin).to(tl.int64)
            head = tl.where(head >= 0, head, -1 - head)
            saved = tl.load(column + head * x_row, mask=in_column)
        # Hazard: see mix_tile. Later tiles load no row that this tile stores.
        tl.debug_barrier()
        tl.store(own_at, mixed, mask=mask)
