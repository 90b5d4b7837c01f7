"""Checks of targets, and of the options of a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .scalars import check_fraction, check_index, describe
from .validation import FLOATS, check_perm

TARGETS = (torch.int64, *FLOATS)
INTEGERS = (
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.int8,
    torch.int16,
    torch.int32,
)
REDUCTIONS = ("none", "mean", "sum")
BINARY_REDUCTIONS = (*REDUCTIONS, "batchmean")


def as_target(name: str, target: Any) -> Tensor:
    """Converts labels of any integer dtype to int64; returns floating targets unchanged."""
    if isinstance(target, Tensor):
        if target.dtype in TARGETS:
            return target
        if target.dtype in INTEGERS:
            return target.to(torch.int64)
    hint = ""
    if isinstance(target, Tensor) and target.dtype == torch.bool:
        hint = "; multi-hot targets are for the binary cross-entropy"
    raise TypeError(f"{name} must be integer labels or floating, got {describe(target)}{hint}")


def check_targets(
    target: Any, num_classes: Any, label_smoothing: Any, ignore_index: Any, dtype: Any
) -> tuple[Tensor, int, float, int]:
    """Checks mix_targets' arguments.

    Returns target, number of classes, label_smoothing and ignore_index as the kernels take them.
    """
    target = as_target("target", target)
    label_smoothing = check_fraction("label_smoothing", label_smoothing)
    ignore_index = check_index("ignore_index", ignore_index)
    if dtype not in FLOATS:
        raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype}")
    if num_classes is not None:
        num_classes = check_index("num_classes", num_classes)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if target.dtype == torch.int64:
        if target.ndim != 1:
            _check_label_map(target)
        if num_classes is None:
            raise ValueError("num_classes must be given for integer targets, got None")
        return target, num_classes, label_smoothing, ignore_index
    if target.ndim < 2:
        raise ValueError(f"a float target must have shape (B, C, ...), got {describe(target)}")
    if num_classes is not None and num_classes != target.shape[1]:
        raise ValueError(
            f"num_classes must be the target's {target.shape[1]} classes, got {num_classes}"
        )
    return target, target.shape[1], label_smoothing, ignore_index


def check_partners(target: Tensor, perm: Any, target_b: Any) -> tuple[Tensor, Tensor | None]:
    """Checks perm and target_b of mix_targets. Returns the targets, of one dtype.

    ``target`` is checked already.
    """
    check_one_of(perm, target_b)
    if target_b is None:
        check_perm(perm, target.shape[0], target.device)
        return target, None
    if target_b is not target:
        target_b = as_target("target_b", target_b)
        check_same_kind(target, target_b)
        if target_b.shape != target.shape:
            raise ValueError(
                f"target_b must have target's shape {tuple(target.shape)}, got {describe(target_b)}"
            )
        if target_b.device != target.device:
            raise ValueError(f"target_b must be on {target.device}, got {target_b.device}")
    if target_b.dtype != target.dtype:  # of two floating ones the wider: exact
        wide = torch.promote_types(target.dtype, target_b.dtype)
        return target.to(wide), target_b.to(wide)
    return target, target_b


def check_one_of(perm: Any, target_b: Any) -> None:
    if (perm is None) == (target_b is None):
        came = "neither" if perm is None else "both"
        raise ValueError(f"exactly one of perm and target_b must be given, got {came}")


def check_same_kind(target: Tensor, target_b: Tensor) -> None:
    if target.is_floating_point() != target_b.is_floating_point():
        kind = describe(target)
        raise TypeError(f"target_b must be of target's kind, {kind}, got {describe(target_b)}")


def _check_label_map(target: Tensor) -> None:
    if target.ndim == 0:
        raise ValueError(f"target must have shape (B,) or (B, d1, ...), got {describe(target)}")
    if target.shape[1:] == (1,):  # a column of labels would give (B, C, 1)
        raise ValueError(
            f"target must have shape ({target.shape[0]},), got {describe(target)}; "
            "pass target.squeeze(1)"
        )


def check_same_batch(target: Tensor, x: Tensor) -> None:
    if target.shape[0] != x.shape[0]:
        raise ValueError(f"target must have x's batch size {x.shape[0]}, got {describe(target)}")
    if target.device != x.device:
        raise ValueError(f"target must be on {x.device}, got {target.device}")


def check_reduction(reduction: Any, known: tuple[str, ...] = REDUCTIONS) -> None:
    if not isinstance(reduction, str) or reduction not in known:
        raise ValueError(f"reduction must be one of {', '.join(known)}, got {reduction!r}")


def check_loss_targets(
    logits: Tensor, target: Any, perm: Tensor | None, target_b: Any, ignore_index: int
) -> tuple[Tensor, Tensor | None]:
    """Returns target and target_b for the kernels. The other arguments are already checked."""
    check_one_of(perm, target_b)
    same = target_b is target
    target = check_loss_target("target", target, logits)
    if same:
        target_b = target
    elif target_b is not None:
        target_b = check_loss_target("target_b", target_b, logits)
        check_same_kind(target, target_b)
    if ignore_index >= 0 and target.is_floating_point():
        raise ValueError(f"ignore_index must be negative with float targets, got {ignore_index}")
    return target, target_b


def check_weight(name: str, weight: Any, logits: Tensor) -> None:
    if not isinstance(weight, Tensor) or weight.dtype not in (logits.dtype, torch.float32):
        raise TypeError(f"{_weight_wanted(name, logits)}, got {describe(weight)}")
    if weight.shape != logits.shape[1:2]:
        raise ValueError(f"{_weight_wanted(name, logits)}, got {describe(weight)}")
    if weight.device != logits.device:
        raise ValueError(f"{name} must be on {logits.device}, got {weight.device}")


def _weight_wanted(name: str, logits: Tensor) -> str:
    own = str(logits.dtype).removeprefix("torch.")
    dtypes = own if own == "float32" else f"{own} or float32"
    return f"{name} must be {dtypes} of shape ({logits.shape[1]},)"


def check_loss_target(name: str, target: Any, logits: Tensor) -> Tensor:
    target = as_target(name, target)
    labels: tuple[int, ...] = logits.shape[:1]
    if logits.ndim > 2:
        labels = (logits.shape[0], *logits.shape[2:])
    expected = labels if target.dtype == torch.int64 else logits.shape
    if target.shape != expected:
        wanted = f"shape {tuple(expected)}"
        if target.dtype != torch.int64 and target.shape == labels:
            wanted += f", or be integer labels of shape {tuple(labels)}"
        raise ValueError(f"{name} must have {wanted}, got {describe(target)}")
    if target.device != logits.device:
        raise ValueError(f"{name} must be on {logits.device}, got {target.device}")
    return target


def check_binary_targets(
    logits: Tensor, target: Any, perm: Tensor | None, target_b: Any
) -> tuple[Tensor, Tensor | None]:
    """check_loss_targets of the binary cross-entropy: labels as int64, multi-hot unchanged."""
    check_one_of(perm, target_b)
    same = target_b is target
    target = check_binary_target("target", target, logits)
    if same or target_b is None:
        return target, target if same else None
    target_b = check_binary_target("target_b", target_b, logits)
    if target.shape != target_b.shape:  # labels, and multi-hot
        kind = describe(target)
        raise TypeError(f"target_b must be of target's kind, {kind}, got {describe(target_b)}")
    return target, target_b


def check_binary_target(name: str, target: Any, logits: Tensor) -> Tensor:
    multi_hot = (torch.bool, torch.uint8, *FLOATS)
    known = isinstance(target, Tensor) and target.dtype in (torch.bool, *TARGETS, *INTEGERS)
    if not known:
        raise TypeError(
            f"{name} must be integer labels, or bool, uint8 or floating of the logits' shape, got "
            f"{describe(target)}"
        )
    labels = logits.shape[:1] + logits.shape[2:]
    if target.shape == logits.shape:
        if target.dtype not in multi_hot:
            raise TypeError(
                f"{name} of the logits' shape must be bool, uint8 or floating, got "
                f"{describe(target)}"
            )
    elif target.shape == labels and target.dtype not in (torch.bool, *FLOATS):
        target = target.to(torch.int64)
    else:
        wanted = f"shape {tuple(logits.shape)}"
        if target.dtype not in (torch.bool, *FLOATS):
            wanted += f", or be integer labels of shape {tuple(labels)}"
        raise ValueError(f"{name} must have {wanted}, got {describe(target)}")
    if target.device != logits.device:
        raise ValueError(f"{name} must be on {logits.device}, got {target.device}")
    return target
