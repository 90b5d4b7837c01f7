"""Triton kernels on the permutation alone, for batches too large for one program to look through.

Their memory is int32 and 4 bytes (uses) or 24 bytes (cycles) a row; nothing is read on the host.
"""

import triton
import triton.language as tl

from .kernels import partner_of


@triton.jit
def uses_kernel(perm_ptr, uses_ptr, B, N: tl.constexpr):
    """uses[j] = how many rows name j as their partner; uses comes as zeros."""
    i = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    j = tl.load(perm_ptr + i, mask=i < B, other=-1)
    inside = (j >= 0) & (j < B)
    tl.atomic_add(uses_ptr + tl.where(inside, j, 0), 1, mask=inside)


@triton.jit
def order_kernel(perm_ptr, scratch_ptr, B, rounds, N: tl.constexpr):
    """The rows in cycle order, by pointer doubling: 2*rounds steps where 2**rounds >= B.

    scratch, (6, B): 0 holds uses on entry and ``start`` on return, 1 holds ``order`` on return, the
    others are free. order[t] is the row at position t, or -1-row where its index is bad; start[t]
    is the position of the first row of its cycle. Rows whose index is bad end a path instead, whose
    first row is one that no good index names. One program does it all, with barriers between the
    steps, each of which reads what other threads wrote in the step before.
    """
    uses, flags = scratch_ptr, scratch_ptr + B
    jump, low = scratch_ptr + 2 * B, scratch_ptr + 3 * B
    new_jump, new_low = scratch_ptr + 4 * B, scratch_ptr + 5 * B
    for i0 in range(0, B, N):
        i = i0 + tl.arange(0, N)
        j, good = partner_of(i, i < B, perm_ptr, uses, B, 0)
        tl.store(jump + i, tl.where(good, j, i).to(tl.int32), mask=i < B)
        tl.store(low + i, i, mask=i < B)
    tl.debug_barrier()

    # jump: where 1, 2, 4, ... steps lead. low: the smallest of the rows stepped on.
    for _step in range(rounds):
        for i0 in range(0, B, N):
            i = i0 + tl.arange(0, N)
            far = tl.load(jump + i, mask=i < B, other=0)
            lowest = tl.minimum(tl.load(low + i, mask=i < B), tl.load(low + far, mask=i < B))
            tl.store(new_jump + i, tl.load(jump + far, mask=i < B), mask=i < B)
            tl.store(new_low + i, lowest, mask=i < B)
        tl.debug_barrier()
        jump, low, new_jump, new_low = new_jump, new_low, jump, low

    # A cycle is cut before its smallest row; from here on all are paths. After B steps a path has
    # come to its bad end, a cycle has not.
    for i0 in range(0, B, N):
        i = i0 + tl.arange(0, N)
        live = i < B
        j, good = partner_of(i, live, perm_ptr, uses, B, 0)
        end = tl.load(jump + i, mask=live, other=0)
        _back, closed = partner_of(end, live, perm_ptr, uses, B, 0)
        lowest = tl.load(low + i, mask=live, other=0)
        ends = (good == 0) | (closed & (j == lowest))
        # A row with other than one use is named by no good index.
        first = (tl.load(uses + i, mask=live, other=1) != 1) | (closed & (i == lowest))
        tl.store(flags + i, first.to(tl.int32), mask=live)
        tl.store(new_jump + i, tl.where(ends, i, j).to(tl.int32), mask=live)
        tl.store(new_low + i, tl.where(ends, 0, 1), mask=live)
    tl.debug_barrier()
    jump, low, new_jump, new_low = new_jump, new_low, jump, low

    # jump: the end of the path. low, now a distance: the steps to it.
    for _step in range(rounds):
        for i0 in range(0, B, N):
            i = i0 + tl.arange(0, N)
            far = tl.load(jump + i, mask=i < B, other=0)
            steps = tl.load(low + i, mask=i < B) + tl.load(low + far, mask=i < B)
            tl.store(new_jump + i, tl.load(jump + far, mask=i < B), mask=i < B)
            tl.store(new_low + i, steps, mask=i < B)
        tl.debug_barrier()
        jump, low, new_jump, new_low = new_jump, new_low, jump, low

    # Paths stand in the order of their first rows. At the end of each: where it starts, its length.
    taken = tl.full((), 0, tl.int32)
    for i0 in range(0, B, N):
        i = i0 + tl.arange(0, N)
        first = tl.load(flags + i, mask=i < B, other=0) != 0
        length = tl.where(first, tl.load(low + i, mask=i < B, other=0) + 1, 0)
        end = tl.load(jump + i, mask=i < B, other=0)
        tl.store(new_jump + end, taken + tl.cumsum(length, 0) - length, mask=first)
        tl.store(new_low + end, length, mask=first)
        taken += tl.sum(length, 0)
    tl.debug_barrier()

    for i0 in range(0, B, N):
        i = i0 + tl.arange(0, N)
        live = i < B
        end = tl.load(jump + i, mask=live, other=0)
        begin = tl.load(new_jump + end, mask=live, other=0)
        t = begin + tl.load(new_low + end, mask=live, other=1) - 1
        t -= tl.load(low + i, mask=live, other=0)
        j, good = partner_of(i, live, perm_ptr, uses, B, 0)
        tl.store(flags + t, tl.where(good, i, -1 - i), mask=live)
    tl.debug_barrier()  # uses are read above and overwritten below

    for i0 in range(0, B, N):
        i = i0 + tl.arange(0, N)
        live = i < B
        end = tl.load(jump + i, mask=live, other=0)
        begin = tl.load(new_jump + end, mask=live, other=0)
        t = begin + tl.load(new_low + end, mask=live, other=1) - 1
        t -= tl.load(low + i, mask=live, other=0)
        tl.store(uses + t, begin, mask=live)
