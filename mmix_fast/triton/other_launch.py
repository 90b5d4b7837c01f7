"""Launch settings of mixing with a second batch, from metadata alone, as in launch.py."""

from __future__ import annotations

from torch import Tensor

from .launch import Launch, columns, lam_stride, stream, strides, vector
from .other import mix_other_kernel, sum_rows_kernel


def mix_other(
    x: Tensor, out: Tensor, other: Tensor, perm: Tensor | None, lam: Tensor, dim: int
) -> list[Launch] | None:
    """None if the samples have gaps, or not all in the same order. out may be x."""
    args, groups = strides(x, out, dim), columns(x, out, dim, other)
    if args is None or groups is None:
        return None
    (inner, x_col, out_col, other_col), (outer, x_outer, out_outer, other_outer) = groups
    other_row, item = other.stride(dim), x.element_size()
    args |= {
        "inner": inner, "outer": outer, "x_col": x_col, "out_col": out_col, "x_outer": x_outer,
        "out_outer": out_outer, "other_outer": other_outer, "other_row": other_row,
        "other_col": other_col,
        "VEC": vector(
            item, inner, x_outer, args["x_row"], out_outer, args["out_row"], other_outer, other_row
        ),
        "x_ptr": x, "out_ptr": out, "other_ptr": other, "perm_ptr": perm, "lam_ptr": lam,
        "samples": other.shape[dim], "lam_stride": lam_stride(lam), "INPLACE": x is out,
    }  # fmt: skip
    programs, warps = stream(args, x.shape[dim], item, x.numel() * item)
    return [Launch(mix_other_kernel, programs, args, warps, True)]


def sum_rows(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    order: Tensor | None,
    begin: Tensor | None,
    dim: int,
) -> list[Launch] | None:
    """None if the samples have gaps, or not all in the same order."""
    args = strides(x, out, dim)
    if args is None:
        return None
    args |= {
        "x_ptr": x, "out_ptr": out, "weight_ptr": weight, "order_ptr": order, "begin_ptr": begin,
        "weight_stride": lam_stride(weight),
    }  # fmt: skip
    programs, warps = stream(args, out.shape[dim], x.element_size(), out.numel() * x.element_size())
    return [Launch(sum_rows_kernel, programs, args, warps, True)]
