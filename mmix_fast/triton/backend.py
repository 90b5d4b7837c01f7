"""The Triton backend: the ops of schemas.py in their own torch.ops namespace.

dispatch.py imports it at first use. It needs no compiled extension. If TRITON_INTERPRET=1 is set
before the import, the kernels run on CPU tensors; the tests use this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..arithmetic import compute_dtype
from ..layouts import in_order
from ..ops import define, empty_soft_targets
from ..schemas import SCHEMAS
from . import binary_loss_launch, launch, loss_launch, other_launch, targets_launch
from .kernels import INTERPRETED

NAMESPACE = "mmix_fast_triton"


def _run(launches: list[launch.Launch], t: Tensor) -> None:
    # Triton launches on the current device, which may differ from the device of the tensors.
    with torch.accelerator.device_index(None if INTERPRETED.value else t.device.index):
        for one in launches:
            one.run()


def mix(x: Tensor, perm: Tensor, lam: Tensor, dim: int, adjoint: bool) -> Tensor:
    out = torch.empty_like(x)
    if x.numel():
        if launch.columns(x, out, dim) is None:
            x = torch.empty_like(x).copy_(x)  # samples are not dense: copy to dense ones, like out
        _run(launch.mix(x, out, perm, lam, dim, adjoint), x)
    return out


def mix_(x: Tensor, perm: Tensor, lam: Tensor, dim: int) -> None:
    if x.numel() == 0:
        return
    if launch.columns(x, x, dim) is None:
        x.copy_(mix(x, perm, lam, dim, False))
    else:
        _run(launch.mix_inplace(x, perm, lam, dim), x)


def mix_other(x: Tensor, other: Tensor, perm: Tensor | None, lam: Tensor, dim: int) -> Tensor:
    out = torch.empty_like(x)
    if x.numel():
        launches = other_launch.mix_other(x, out, other, perm, lam, dim)
        if launches is None:  # as in mix
            launches = other_launch.mix_other(
                _dense(x), out, in_order(_dense(other), out, dim), perm, lam, dim
            )
        assert launches is not None  # all three are dense, in the same order
        _run(launches, x)
    return out


def mix_other_(x: Tensor, other: Tensor, perm: Tensor | None, lam: Tensor, dim: int) -> None:
    if x.numel() == 0:
        return
    launches = other_launch.mix_other(x, x, other, perm, lam, dim)
    if launches is None:
        x.copy_(mix_other(x, other, perm, lam, dim))
    else:
        _run(launches, x)


def sum_rows_(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    order: Tensor | None,
    begin: Tensor | None,
    dim: int,
) -> None:
    if out.numel() == 0:
        return
    launches = other_launch.sum_rows(out, x, weight, order, begin, dim)
    if launches is None:  # out is dense; x gets its order
        launches = other_launch.sum_rows(
            out, in_order(_dense(x), out, dim), weight, order, begin, dim
        )
    assert launches is not None
    _run(launches, out)


def _dense(t: Tensor) -> Tensor:
    return torch.empty_like(t).copy_(t)


def mix_targets(
    target: Tensor,
    perm: Tensor | None,
    lam: Tensor,
    num_classes: int,
    label_smoothing: float,
    ignore_index: int,
    dtype: torch.dtype,
    target_b: Tensor | None = None,
) -> Tensor:
    out = empty_soft_targets(target, num_classes, dtype)
    if out.numel():
        _run(
            targets_launch.targets(target, out, perm, lam, label_smoothing, ignore_index, target_b),
            out,
        )
    return out


def mix_batch_(
    x: Tensor,
    target: Tensor,
    perm: Tensor,
    lam: Tensor,
    num_classes: int,
    label_smoothing: float,
    ignore_index: int,
    dtype: torch.dtype,
) -> Tensor:
    out = empty_soft_targets(target, num_classes, dtype)
    slab = x.shape[0] <= launch.SLAB_ROWS and launch.columns(x, x, 0) is not None
    if slab and x.numel() and out.numel():
        _run(targets_launch.batch(x, target, out, perm, lam, label_smoothing, ignore_index), x)
        return out
    # One after the other, so that the scratch memory of both is not held at once.
    if out.numel():
        _run(targets_launch.targets(target, out, perm, lam, label_smoothing, ignore_index), out)
    mix_(x, perm, lam, 0)
    return out


def cutmix_(x: Tensor, perm: Tensor, box: Tensor, lam: Tensor) -> None:
    if x.numel() == 0:
        return
    launches = launch.cutmix(x, perm, box, lam)
    if launches is None:
        reference.cutmix_(x, perm, box, lam)
    else:
        _run(launches, x)


def _collapsed(t: Tensor) -> Tensor:
    """t itself if its inner dimensions collapse to one stride, else a contiguous copy."""
    return t if loss_launch.row_strides(t) is not None else t.contiguous()


def _copy_back(buffer: Tensor | None, out: Tensor | None) -> None:
    """After the launches; ``buffer``: _collapsed(out), if it was written."""
    if buffer is not None and out is not None and buffer is not out:
        out.copy_(buffer)


def _inputs(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    target, perm, target_b, *rest = inputs
    if target.dtype != torch.int64:
        target = _collapsed(target)
        target_b = None if target_b is None else _collapsed(target_b)
    return (target, perm, target_b, *rest)


def _loss(
    logits: Tensor, inputs: tuple[Any, ...], stats: Tensor | None, gradient: Tensor | None
) -> Tensor:
    """The forward. It also writes ``gradient``, if given; that may be the logits."""
    scales, reduction = inputs[5], inputs[7]
    shape, acc = logits.shape[:1] + logits.shape[2:], compute_dtype(logits.dtype)
    losses = logits.new_empty(shape, dtype=acc)
    if shape.numel():
        buffer = None if gradient is None else _collapsed(gradient)
        source = buffer if gradient is logits else _collapsed(logits)
        assert source is not None
        launches = loss_launch.loss(source, _inputs(inputs), stats=stats, losses=losses, out=buffer)
        _run(launches, logits)
        _copy_back(buffer, gradient)
    elif reduction == "mean":  # of nothing
        return losses.mean() if scales is None else scales[3:].sum(dtype=acc)
    return losses if reduction == "none" else losses.sum()


def _row_numbers(logits: Tensor, each: int) -> Tensor:
    rows = (logits.shape[:1] + logits.shape[2:]).numel()
    return logits.new_empty((rows, each), dtype=compute_dtype(logits.dtype))


def cross_entropy(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, upstream = args
    stats = _row_numbers(logits, 2)
    gradient = torch.empty_like(logits) if upstream == 1 else None
    loss = _loss(logits, tuple(inputs), stats, gradient)
    return loss, stats, logits.new_empty(0) if gradient is None else gradient


def cross_entropy_(logits: Tensor, *inputs: Any) -> Tensor:
    return _loss(logits, inputs, None, logits)


def cross_entropy_part(logits: Tensor, *inputs: Any) -> Tensor:
    part = _row_numbers(logits, 4)
    if part.numel():  # a shard without classes has rows too
        _run(loss_launch.loss(_collapsed(logits), _inputs(inputs), stats=part), logits)
    return part


def _gradient(
    out: Tensor, grad: Tensor, stats: Tensor, logits: Tensor, inputs: Any, rescale: bool = False
) -> None:
    if logits.numel() == 0:
        return
    buffer = _collapsed(out)
    launches = loss_launch.loss(
        _collapsed(logits), _inputs(inputs), stats=stats, out=buffer, grad=grad, rescale=rescale
    )
    _run(launches, logits)
    _copy_back(buffer, out)


def cross_entropy_backward(grad: Tensor, stats: Tensor, logits: Tensor, *inputs: Any) -> Tensor:
    out = torch.empty_like(logits)
    _gradient(out, grad, stats, logits, inputs)
    return out


def cross_entropy_backward_(grad: Tensor, stats: Tensor, logits: Tensor, *inputs: Any) -> None:
    _gradient(logits, grad, stats, logits, inputs)


def cross_entropy_rescale_(
    gradient: Tensor, grad: Tensor, stats: Tensor, logits: Tensor, *inputs: Any
) -> None:
    _gradient(gradient, grad, stats, logits, inputs, rescale=True)


def binary_cross_entropy(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    *inputs, upstream = args
    with_gradient, reduction = upstream == 1, inputs[6]
    every, acc = reduction == "none", compute_dtype(logits.dtype)
    losses = torch.empty_like(logits, dtype=acc) if every else None
    gradient = torch.empty_like(logits) if with_gradient else logits.new_empty(0)
    if logits.numel() == 0:
        if losses is None:
            over = binary_loss_launch.divisor(logits, reduction)
            losses = logits.new_full((), 0 if over else float("nan"), dtype=acc)
        return losses, gradient
    to_losses = None if losses is None else _collapsed(losses)
    to_gradient = _collapsed(gradient) if with_gradient else None
    launches, parts = binary_loss_launch.binary_loss(
        _collapsed(logits), _inputs(tuple(inputs)), forward=True, losses=to_losses, out=to_gradient
    )
    _run(launches, logits)
    _copy_back(to_gradient, gradient)
    if losses is None:
        assert parts is not None
        return parts.sum(), gradient
    _copy_back(to_losses, losses)
    return losses, gradient


def _binary_gradient(
    out: Tensor, grad: Tensor, logits: Tensor, inputs: Any, rescale: bool = False
) -> None:
    if logits.numel() == 0:
        return
    buffer = _collapsed(out)
    grad = _collapsed(grad) if grad.ndim else grad  # of the logits' shape for reduction "none"
    launches, _ = binary_loss_launch.binary_loss(
        _collapsed(logits), _inputs(inputs), out=buffer, grad=grad, rescale=rescale
    )
    _run(launches, logits)
    _copy_back(buffer, out)


def binary_cross_entropy_backward(grad: Tensor, logits: Tensor, *inputs: Any) -> Tensor:
    out = torch.empty_like(logits)
    _binary_gradient(out, grad, logits, inputs)
    return out


def binary_cross_entropy_backward_(grad: Tensor, logits: Tensor, *inputs: Any) -> None:
    _binary_gradient(logits, grad, logits, inputs)


def binary_cross_entropy_rescale_(
    gradient: Tensor, grad: Tensor, logits: Tensor, *inputs: Any
) -> None:
    _binary_gradient(gradient, grad, logits, inputs, rescale=True)


_library = define(NAMESPACE)
for _schema in SCHEMAS:
    _name = _schema.partition("(")[0]
    if _name == "sample_mix":  # plain PyTorch draws
        continue
    for _key in ("CPU",) if INTERPRETED.value else ("CUDA", "XPU"):
        _library.impl(_name, globals()[_name], _key)
