"""Launch settings of mixing and CutMix, and what all launch files share, from metadata alone.

Meta tensors work too, so the ahead-of-time checks compile exactly what would run. There is no
autotuning: a call never launches more kernels than it needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from .arguments import Box
from .cutmix import cutmix_kernel
from .cycles import order_kernel, uses_kernel
from .kernels import mix_kernel
from .walk import walk_kernel

cdiv, pow2 = triton.cdiv, triton.next_power_of_2

# Up to this many rows, each program scans the whole permutation (or all labels) itself, which saves
# a launch; it reads 8 KiB of indices from the L2 cache.
KNOWN_ROWS = 1024
# Up to this many rows, a slab of whole columns fits in the registers of one program.
SLAB_ROWS = 1024
# Tile bytes per thread: 4 loads of 16 bytes in flight, and 4 more for the partners.
BYTES_PER_THREAD = 64
TILE_BYTES = 16384  # out of place: 8 warps
SLAB_BYTES = 32768  # in place; more if a row would get less than LINE_BYTES
MAX_SLAB_BYTES = 65536
# Contiguous bytes of a row in a tile: at least LINE_BYTES, for DRAM efficiency; at most
# MAX_LINE_BYTES, since wider tiles would only leave fewer programs.
LINE_BYTES, MAX_LINE_BYTES = 256, 2048
WALK_ROWS = 64
# Enough programs to fill any GPU twice; smaller problems take smaller tiles.
FULL_GPU = 256
COUNT_BLOCK = 1024


@dataclass(frozen=True)
class Launch:
    """One kernel launch; ``args`` by parameter name. ``exact``: no fused multiply-add."""

    kernel: Any
    programs: int
    args: dict[str, Any]
    warps: int
    exact: bool

    @property
    def options(self) -> dict[str, Any]:
        # One stage: software pipelining would move loads across the stores of in-place loops.
        return {"num_warps": self.warps, "num_stages": 1, "enable_fp_fusion": not self.exact}

    def run(self) -> None:
        self.kernel[(self.programs,)](**self.args, **self.options)


def fits(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))


def warps_for(tile_bytes: int, bytes_per_thread: int = BYTES_PER_THREAD) -> int:
    return fits(1, tile_bytes // (32 * bytes_per_thread), 16)


def vector(itemsize: int, *multiples: int) -> int:
    """Elements per access: the widest, up to 16 bytes, that divides all ``multiples``."""
    width = 16 // itemsize
    while width > 1 and any(m % width for m in multiples):
        width //= 2
    return width


def sorted_dims(x: Tensor, out: Tensor, dim: int) -> list[int]:
    """All dimensions except dim, smallest stride first; columns are numbered in this order."""
    dims = [d for d in range(x.ndim) if d != dim and x.shape[d] != 1]
    return sorted(dims, key=lambda d: (x.stride(d), out.stride(d)))


def merged(dims: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Merges dimensions (size, stride, ...), fastest first, where the strides of one continue those
    of the one before: what is left must be walked one by one."""
    groups: list[tuple[int, ...]] = []
    for size, *strides in dims:
        n, *before = groups[-1] if groups else (0,)
        if groups and strides == [n * s for s in before]:
            groups[-1] = (n * size, *before)
        else:
            groups.append((size, *strides))
    return groups


def columns(
    x: Tensor, out: Tensor, dim: int, other: Tensor | None = None
) -> list[tuple[int, ...]] | None:
    """All dimensions except dim as two groups, fastest first: (size, stride in x, stride in out),
    and the stride in ``other`` if it is given.

    None if more than two groups are needed: x is not dense within a sample.
    """
    tensors = (x, out) if other is None else (x, out, other)
    dims = sorted_dims(x, out, dim)
    groups = merged((x.shape[d], *(t.stride(d) for t in tensors)) for d in dims)
    if len(groups) > 2:
        return None
    one = [(1, *(1 for _ in tensors))] if not groups else []
    return groups + one + [(1, *(0 for _ in tensors))] * (2 - max(len(groups), 1))


def uses(perm: Tensor) -> tuple[Tensor | None, int, list[Launch]]:
    """How often each row is named: (counts, BLOCK_BATCH, launches); counts is None if each program
    counts itself."""
    batch = perm.shape[0]
    if batch <= KNOWN_ROWS:
        return None, max(16, pow2(batch)), []
    counts = torch.zeros(batch, dtype=torch.int32, device=perm.device)
    return counts, 0, [uses_launch(perm, counts)]


def uses_launch(perm: Tensor, counts: Tensor) -> Launch:
    batch = perm.shape[0]
    args = {"perm_ptr": perm, "uses_ptr": counts, "B": batch, "BLOCK": COUNT_BLOCK}
    return Launch(uses_kernel, cdiv(batch, COUNT_BLOCK), args, 4, True)


def strides(x: Tensor, out: Tensor, dim: int) -> dict[str, Any] | None:
    """inner, outer and the strides of x and out, as mix_tile takes them; None if columns is."""
    groups = columns(x, out, dim)
    if groups is None:
        return None
    (inner, x_col, out_col), (outer, x_outer, out_outer) = groups
    x_row, out_row = x.stride(dim), out.stride(dim)
    return {
        "inner": inner,
        "outer": outer,
        "x_outer": x_outer,
        "x_row": x_row,
        "x_col": x_col,
        "out_outer": out_outer,
        "out_row": out_row,
        "out_col": out_col,
        "VEC": vector(x.element_size(), inner, x_outer, x_row, out_outer, out_row),
    }


def lam_stride(lam: Tensor) -> int:
    return lam.stride(0) if lam.ndim else 0


def stream(args: dict[str, Any], batch: int, itemsize: int, total: int) -> tuple[int, int]:
    """(programs, warps) of a kernel that moves tiles of rows, out of place or with no row that
    another needs. Adds the tile to ``args``, and takes ``outer`` from them."""
    tile = TILE_BYTES if total >= FULL_GPU * TILE_BYTES else TILE_BYTES // 4
    width = fits(1, pow2(args["inner"]), MAX_LINE_BYTES // itemsize)
    rows = fits(1, pow2(batch), tile // (width * itemsize))
    args |= {"B": batch, "row_tiles": cdiv(batch, rows), "BLOCK_ROWS": rows, "BLOCK_COLS": width}
    programs = args.pop("outer") * cdiv(args["inner"], width) * args["row_tiles"]
    return programs, warps_for(rows * width * itemsize)


def mix(x: Tensor, out: Tensor, perm: Tensor, lam: Tensor, dim: int, adjoint: bool) -> list[Launch]:
    """Out of place. x and out are not empty, and :func:`columns` does not give None for them."""
    args = strides(x, out, dim)
    assert args is not None
    batch, item = x.shape[dim], x.element_size()
    counts, block_batch, launches = uses(perm)
    args |= {
        "x_ptr": x, "out_ptr": out, "perm_ptr": perm, "lam_ptr": lam, "uses_ptr": counts,
        "lam_stride": lam_stride(lam), "ADJOINT": adjoint, "INPLACE": False,
        "BLOCK_BATCH": block_batch,
    }  # fmt: skip
    programs, warps = stream(args, batch, item, x.numel() * item)
    return [*launches, Launch(mix_kernel, programs, args, warps, True)]


def slab(x: Tensor, perm: Tensor, lam: Tensor, dim: int) -> tuple[int, dict[str, Any], int]:
    """(programs, arguments, warps) of mix_tile in place."""
    args = strides(x, x, dim)
    assert args is not None
    batch, item, outer = x.shape[dim], x.element_size(), args.pop("outer")
    rows = pow2(batch)
    line = fits(min(LINE_BYTES, MAX_SLAB_BYTES // rows), SLAB_BYTES // rows, MAX_LINE_BYTES)
    # A thread holds single bytes in a register each: no more of them than of 2-byte elements.
    width = fits(1, pow2(args["inner"]), max(1, line // max(item, 2)))
    args |= {
        "x_ptr": x, "perm_ptr": perm, "lam_ptr": lam, "uses_ptr": None, "B": batch,
        "lam_stride": lam_stride(lam), "BLOCK_BATCH": max(16, rows), "BLOCK_ROWS": rows,
        "BLOCK_COLS": width,
    }  # fmt: skip
    return outer * cdiv(args["inner"], width), args, warps_for(rows * width * item)


def mix_inplace(x: Tensor, perm: Tensor, lam: Tensor, dim: int) -> list[Launch]:
    """The slab if it fits, else cycle order and walk; both move 2 bytes per byte of x."""
    if x.shape[dim] <= SLAB_ROWS:
        programs, args, warps = slab(x, perm, lam, dim)
        args |= {"out_ptr": x, "row_tiles": 1, "ADJOINT": False, "INPLACE": True}
        return [Launch(mix_kernel, programs, args, warps, True)]
    return walk(x, perm, lam, dim)


def walk(x: Tensor, perm: Tensor, lam: Tensor, dim: int, box: Box | None = None) -> list[Launch]:
    """In place, for any number of rows: their cycle order, then one walk over it."""
    columns_of_x = strides(x, x, dim)
    assert columns_of_x is not None
    batch, item = x.shape[dim], x.element_size()
    scratch = torch.zeros((6, batch), dtype=torch.int32, device=x.device)  # 24 bytes a row
    order = {
        "perm_ptr": perm, "scratch_ptr": scratch, "B": batch,
        "rounds": (batch - 1).bit_length(), "BLOCK": 2 * COUNT_BLOCK,
    }  # fmt: skip
    width = fits(1, pow2(columns_of_x["inner"]), LINE_BYTES // item)
    programs = columns_of_x.pop("outer") * cdiv(columns_of_x["inner"], width)
    args = {name: v for name, v in columns_of_x.items() if not name.startswith("out_")} | {
        "x_ptr": x, "perm_ptr": perm, "lam_ptr": lam, "B": batch, "lam_stride": lam_stride(lam),
        "start_ptr": scratch[0], "order_ptr": scratch[1], "box": box, "BLOCK_ROWS": WALK_ROWS,
        "BLOCK_COLS": width,
    }  # fmt: skip
    return [
        uses_launch(perm, scratch[0]),
        Launch(order_kernel, 1, order, 16, True),
        Launch(walk_kernel, programs, args, warps_for(WALK_ROWS * width * item), True),
    ]


def cutmix(x: Tensor, perm: Tensor, box: Tensor, lam: Tensor) -> list[Launch] | None:
    """mix_inplace in each sample's box alone; None if x is not dense within a sample."""
    if columns(x, x, 0) is None:
        return None
    every, pixel = 1, {"y_every": 1, "height": 1, "x_every": 1, "width": 1}
    for d in sorted_dims(x, x, 0):
        if d == x.ndim - 2:
            pixel |= {"y_every": every, "height": x.shape[d]}
        if d == x.ndim - 1:
            pixel |= {"x_every": every, "width": x.shape[d]}
        every *= x.shape[d]
    boxes = Box(box, 4 if box.ndim == 2 else 0, **pixel)
    if x.shape[0] > SLAB_ROWS:
        return walk(x, perm, lam, 0, boxes)
    programs, args, warps = slab(x, perm, lam, 0)
    args = {name: v for name, v in args.items() if not name.startswith("out_")} | {"box": boxes}
    return [Launch(cutmix_kernel, programs, args, warps, True)]
