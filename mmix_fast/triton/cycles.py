"""Triton kernels that read only perm, for batches too large for each program to scan all of it.

Their scratch memory is int32: 4 bytes (uses) or 24 bytes (cycles) per row. Nothing is read on the
host.
"""

import triton
import triton.language as tl

from .kernels import partner_of


@triton.jit
def uses_kernel(perm_ptr, uses_ptr, B, BLOCK: tl.constexpr):
    """uses[j] = how many rows name j as their partner; uses must be zero on entry."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    j = tl.load(perm_ptr + i, mask=i < B, other=-1)
    inside = (j >= 0) & (j < B)
    tl.atomic_add(uses_ptr + tl.where(inside, j, 0), 1, mask=inside)


@triton.jit
def place_of(i, live, jump, low, begins, lengths):
    """(position of the first row of its path, own position) of rows i, in cycle order; jump: the
    end of the path, where begins and lengths are stored; low: the steps to it."""
    end = tl.load(jump + i, mask=live, other=0)
    begin = tl.load(begins + end, mask=live, other=0)
    t = begin + tl.load(lengths + end, mask=live, other=1) - 1
    return begin, t - tl.load(low + i, mask=live, other=0)


@triton.jit
def order_kernel(perm_ptr, scratch_ptr, B, rounds, BLOCK: tl.constexpr):
    """Sorts the rows in cycle order by pointer doubling: 2*rounds steps, where 2**rounds >= B.

    scratch is (6, B): [0] holds uses on entry and ``start`` on return, [1] holds ``order`` on
    return, the others are temporary. order[t] is the row at position t, or -1-row if its index is
    bad; start[t] is the position of the first row of its cycle. A row with a bad index ends a path
    instead of a cycle; a path starts at a row that no good index names. One program runs all steps,
    with barriers between them, since each step reads what other threads wrote in the one before.
    """
    uses, flags = scratch_ptr, scratch_ptr + B
    jump, low = scratch_ptr + 2 * B, scratch_ptr + 3 * B
    new_jump, new_low = scratch_ptr + 4 * B, scratch_ptr + 5 * B
    for i0 in range(0, B, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        j, good = partner_of(i, i < B, perm_ptr, uses, B, 0)
        tl.store(jump + i, tl.where(good, j, i).to(tl.int32), mask=i < B)
        tl.store(low + i, i, mask=i < B)
    tl.debug_barrier()

    # jump: the row that 1, 2, 4, ... steps lead to. low: the smallest row on the way.
    for _step in range(rounds):
        for i0 in range(0, B, BLOCK):
            i = i0 + tl.arange(0, BLOCK)
            far = tl.load(jump + i, mask=i < B, other=0)
            lowest = tl.minimum(tl.load(low + i, mask=i < B), tl.load(low + far, mask=i < B))
            tl.store(new_jump + i, tl.load(jump + far, mask=i < B), mask=i < B)
            tl.store(new_low + i, lowest, mask=i < B)
        tl.debug_barrier()
        jump, low, new_jump, new_low = new_jump, new_low, jump, low

    # Cut each cycle before its smallest row, so that only paths remain. jump now looks B or more
    # steps ahead: it is the row with a bad index that ends a path, or a good row of a cycle.
    for i0 in range(0, B, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        live = i < B
        j, good = partner_of(i, live, perm_ptr, uses, B, 0)
        end = tl.load(jump + i, mask=live, other=0)
        _back, closed = partner_of(end, live, perm_ptr, uses, B, 0)
        lowest = tl.load(low + i, mask=live, other=0)
        ends = (good == 0) | (closed & (j == lowest))
        # A row whose uses differ from 1 is named by no good index, so it starts a path.
        first = (tl.load(uses + i, mask=live, other=1) != 1) | (closed & (i == lowest))
        tl.store(flags + i, first.to(tl.int32), mask=live)
        tl.store(new_jump + i, tl.where(ends, i, j).to(tl.int32), mask=live)
        tl.store(new_low + i, tl.where(ends, 0, 1), mask=live)
    tl.debug_barrier()
    jump, low, new_jump, new_low = new_jump, new_low, jump, low

    # jump: becomes the end of the path. low: from here on the number of steps to it.
    for _step in range(rounds):
        for i0 in range(0, B, BLOCK):
            i = i0 + tl.arange(0, BLOCK)
            far = tl.load(jump + i, mask=i < B, other=0)
            steps = tl.load(low + i, mask=i < B) + tl.load(low + far, mask=i < B)
            tl.store(new_jump + i, tl.load(jump + far, mask=i < B), mask=i < B)
            tl.store(new_low + i, steps, mask=i < B)
        tl.debug_barrier()
        jump, low, new_jump, new_low = new_jump, new_low, jump, low

    # Place the paths in the order of their first rows. At the last row of each path, store its
    # start position (new_jump) and its length (new_low).
    taken = tl.full((), 0, tl.int32)
    for i0 in range(0, B, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        first = tl.load(flags + i, mask=i < B, other=0) != 0
        length = tl.where(first, tl.load(low + i, mask=i < B, other=0) + 1, 0)
        end = tl.load(jump + i, mask=i < B, other=0)
        tl.store(new_jump + end, taken + tl.cumsum(length, 0) - length, mask=first)
        tl.store(new_low + end, length, mask=first)
        taken += tl.sum(length, 0)
    tl.debug_barrier()

    for i0 in range(0, B, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        live = i < B
        begin, t = place_of(i, live, jump, low, new_jump, new_low)
        j, good = partner_of(i, live, perm_ptr, uses, B, 0)
        tl.store(flags + t, tl.where(good, i, -1 - i), mask=live)
    tl.debug_barrier()  # uses are read above and overwritten below

    for i0 in range(0, B, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        live = i < B
        begin, t = place_of(i, live, jump, low, new_jump, new_low)
        tl.store(uses + t, begin, mask=live)
