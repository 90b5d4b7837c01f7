"""Launch settings of soft targets, from metadata alone, as in launch.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..arithmetic import compute_dtype
from . import launch as common
from .kernels import batch_kernel, targets_kernel
from .launch import Launch, cdiv, fits, lam_stride, pow2, slab, uses


def smoothing(eps: float, classes: int) -> dict[str, float]:
    """The smoothed target of a class is keep*t + base, as in csrc/smoothing.h."""
    return {"keep": 1.0 - eps, "base": eps / classes}


def soft_tile(
    target: Tensor, out: Tensor, eps: float, ignore_index: int
) -> tuple[int, dict[str, Any], int]:
    """(programs, arguments, warps) of targets_tile."""
    batch, classes = out.shape[:2]
    sample = out.numel() // batch
    width = min(pow2(sample), common.COUNT_BLOCK)
    rows = fits(1, pow2(batch), 2 * common.COUNT_BLOCK // width)
    row_tiles = cdiv(batch, rows)
    smooth = smoothing(eps, classes)
    args = {
        "target_ptr": target, "soft_ptr": out, "C": classes, "soft_inner": sample // classes,
        "sample": sample, "soft_row_tiles": row_tiles, "ignore_index": ignore_index,
        "hot": smooth["keep"] + smooth["base"], "LABELS": target.dtype == torch.int64,
        "WIDE": compute_dtype(target.dtype, out.dtype) == torch.float64, "SOFT_BLOCK_ROWS": rows,
        "SOFT_BLOCK_COLS": width, **smooth,
    }  # fmt: skip
    return row_tiles * cdiv(sample, width), args, 4


def targets(
    target: Tensor,
    out: Tensor,
    perm: Tensor | None,
    lam: Tensor,
    eps: float,
    ignore_index: int,
    target_b: Tensor | None = None,
) -> list[Launch]:
    programs, args, warps = soft_tile(target, out, eps, ignore_index)
    counts, block_batch, launches = (None, 0, []) if perm is None else uses(perm)
    args |= {
        "target_b_ptr": target if target_b is None else target_b, "perm_ptr": perm, "lam_ptr": lam,
        "uses_ptr": counts, "B": out.shape[0], "lam_stride": lam_stride(lam),
        "BLOCK_BATCH": block_batch,
    }  # fmt: skip
    return [*launches, Launch(targets_kernel, programs, args, warps, True)]


def batch(
    x: Tensor, target: Tensor, out: Tensor, perm: Tensor, lam: Tensor, eps: float, ignore_index: int
) -> list[Launch]:
    """mix_inplace along dimension 0 and targets in one launch, for up to SLAB_ROWS rows."""
    programs, args, warps = slab(x, perm, lam, 0)
    soft_programs, soft_args, soft_warps = soft_tile(target, out, eps, ignore_index)
    args = {name: v for name, v in args.items() if not name.startswith("out_")}
    args |= soft_args | {"mix_programs": programs}
    total, warps = programs + soft_programs, max(warps, soft_warps)
    return [Launch(batch_kernel, total, args, warps, True)]
