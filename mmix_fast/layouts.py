"""Strides: which dimensions nest in which, whether tensors share memory, dense copies."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def by_stride(dims: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Tuples (stride, size, ...) with more than one element, smallest stride first.

    Sorted by hand: Dynamo cannot sort symbolic sizes.
    """
    nested: list[tuple[int, int, int]] = []
    for each in dims:
        if each[1] > 1:
            at = len(nested)
            while at and nested[at - 1][0] > each[0]:
                at -= 1
            nested.insert(at, each)
    return nested


def dims_of(x: Tensor, without: int | None = None) -> list[tuple[int, int, int]]:
    """(stride, size, number) of x's dimensions, except one."""
    return [(x.stride(d), x.shape[d], d) for d in range(x.ndim) if d != without]


def _nest(dims: Iterable[tuple[int, int, int]]) -> bool:
    """True only if no two indices have the same address: each stride leaps over all before it."""
    reach = 0
    for stride, size, _ in by_stride(dims):
        if stride <= reach:
            return False
        reach += stride * (size - 1)
    return True


def overlaps(x: Tensor) -> bool:
    """True if two elements may share an address. Conservative: False only if the strides nest."""
    if x.is_contiguous() or x.numel() == 0:
        return False
    return not _nest(dims_of(x))


def share_memory(x: Tensor, y: Tensor) -> bool:
    """True if an element of x and one of y may share an address; both have data.

    Exact where one ends before the other begins, and where both have the same strides (``t[::2]``
    and ``t[1::2]``, or two halves of the channels); else conservative.
    """
    if x.numel() == 0 or y.numel() == 0:
        return False
    first, second = sorted((x, y), key=Tensor.data_ptr)
    apart = second.data_ptr() - first.data_ptr()
    item = x.element_size()
    if apart >= item * (1 + sum((size - 1) * stride for stride, size, _ in dims_of(first))):
        return False
    if apart % item or first.stride() != second.stride() or x.dtype != y.dtype:
        return True
    # The two as one tensor, with one dimension more, and as many samples as the larger has.
    sizes = [max(pair) for pair in zip(x.shape, y.shape, strict=True)]
    dims = [(stride, size, 0) for stride, size in zip(x.stride(), sizes, strict=True)]
    return not _nest([*dims, (apart // item, 2, 0)])


def dense_strides(x: Tensor) -> list[int]:
    """The strides of a tensor of x's shape without gaps, whose dimensions nest as those of x."""
    strides, step = [1] * x.ndim, 1
    for _, size, d in by_stride(dims_of(x)):
        strides[d] = step
        step = step * size
    return strides


def in_order(t: Tensor, like: Tensor, dim: int) -> Tensor:
    """t, if its samples along ``dim`` are laid out as those of ``like``, gaps aside; else a copy.

    The copy is dense. Kernels read any strides, but only equal orders give long contiguous runs.
    """
    if t.stride() == like.stride():
        return t
    before, first = 0, True
    for stride, _, d in by_stride(dims_of(like, dim)):
        if t.stride(d) < before or (first and stride == 1 and t.stride(d) != 1):
            order = [d for _, _, d in reversed(by_stride((s, 2, d) for s, _, d in dims_of(like)))]
            back = [order.index(d) for d in range(t.ndim)]
            return t.permute(order).contiguous().permute(back)
        before, first = t.stride(d), False
    return t
