"""The rows of one program of a loss kernel: their numbers, places in memory and lam."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .kernels import aligned


class Rows(NamedTuple):
    """The rows of one program: their place in memory, number, sample, and whether they exist."""

    outer: Any
    index: Any  # within outer
    number: Any  # of all rows
    sample: Any
    inner: Any  # rows of a sample
    here: Any


@triton.jit
def tile_rows(tile, inner, batch, row_tiles, OPT, TILE):
    """The rows of one tile."""
    outer = (tile // row_tiles).to(tl.int64)
    index = (tile % row_tiles).to(tl.int64) * TILE.BLOCK_ROWS + tl.arange(0, TILE.BLOCK_ROWS)
    each = inner if OPT.SPATIAL else batch  # rows of an outer index
    if OPT.BESIDE:
        each = aligned(each, TILE.ALONG)
    if OPT.SPATIAL:
        sample, inner = outer + tl.zeros((TILE.BLOCK_ROWS,), tl.int64), each
    else:
        sample, inner = index, 1
    return Rows(outer, index, outer * each + index, sample, inner, index < each)


@triton.jit
def row_at(m, outer, index, VEC: tl.constexpr, OPT):
    """(pointers to rows, stride of the classes) in the Matrix m."""
    row, col = m.row, m.col
    if OPT.BESIDE:
        col = aligned(col, VEC)
    else:
        row = aligned(row, VEC)
    at = m.ptr
    if OPT.SPATIAL:
        at += outer * aligned(m.outer, VEC)
    return at + index * row, col


@triton.jit
def cells(at, c, col):
    """Pointers to the classes c of rows that begin at ``at``."""
    return at[:, None] + (c.to(tl.int64) * col)[None, :]


@triton.jit
def lam_of(rows, pairs, acc: tl.constexpr, OPT, TILE):
    """lam of each row."""
    if OPT.SPATIAL:
        # One scalar, so that masks made from it do not split vector accesses of adjacent rows.
        one = tl.load(pairs.lam_ptr + rows.outer * pairs.lam_stride).to(acc)
        lam = tl.zeros((TILE.BLOCK_ROWS,), acc) + one
    else:
        at = pairs.lam_ptr + rows.sample * pairs.lam_stride
        lam = tl.load(at, mask=rows.here, other=0).to(acc)
    return lam
