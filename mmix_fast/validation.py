"""The only place that judges a user's arguments; messages name what was expected and what came."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

# Small calls feel every microsecond of these checks: nothing is built here that is not needed.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NUMBERS = (float, int, torch.SymFloat)
TARGETS = (torch.int64, *FLOATS)
REDUCTIONS = ("none", "mean", "sum")
_validate_everywhere = os.environ.get("MMIX_FAST_VALIDATE", "0") not in ("", "0")


def set_validation(enabled: bool) -> None:
    """Check the values of labels and perm on every device, at the cost of a host sync on a GPU."""
    global _validate_everywhere
    _validate_everywhere = bool(enabled)


def must_check_values(device: torch.device) -> bool:
    """Values are read on the host on CPU tensors, or where the user asked; never inside a graph."""
    return not torch.compiler.is_compiling() and (device.type == "cpu" or _validate_everywhere)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def as_lam(lam: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """λ as a tensor of the arithmetic's dtype, on ``device``, without making the host wait."""
    if isinstance(lam, Tensor):
        if lam.dtype == dtype and lam.device == device:
            return lam
        return lam.to(device=device, dtype=dtype, non_blocking=True)
    if torch.compiler.is_compiling():
        # as_tensor, full and tensor would specialise the graph on the value.
        return torch.ones((), dtype=dtype, device=device) * lam
    # Not on the default device: that would wait. torch.tensor takes twice the time.
    made = torch.scalar_tensor(lam, dtype=dtype, device="cpu")
    return made if device.type == "cpu" else made.to(device, non_blocking=True)


def what(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return f"{type(value).__name__} {value!r}"


def check_x(x: Any, name: str = "x") -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {what(x)}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {what(x)}")


def check_dim(x: Tensor, dim: int) -> int:
    if type(dim) is int and 0 <= dim < x.ndim:
        return dim
    if x.ndim == 0:
        raise ValueError("x must have a batch dimension, got shape ()")
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"dim must be an int, got {what(dim)}")
    if not -x.ndim <= dim < x.ndim:
        raise IndexError(f"dim must be in [{-x.ndim}, {x.ndim - 1}], got {dim}")
    return dim % x.ndim


def check_perm(perm: Any, batch: int, device: torch.device) -> None:
    if not isinstance(perm, Tensor) or perm.dtype != torch.int64:
        raise TypeError(f"perm must be int64 of shape ({batch},), got {what(perm)}")
    if perm.shape != (batch,):
        raise ValueError(f"perm must be int64 of shape ({batch},), got {what(perm)}")
    if perm.device != device:
        raise ValueError(f"perm must be on {device}, got {perm.device}")


def check_lam(lam: Any, batch: int, device: torch.device) -> None:
    if isinstance(lam, Tensor):
        if lam.dtype not in FLOATS and not lam.is_floating_point():
            raise TypeError(f"lam must be a float or a floating tensor, got {what(lam)}")
        if lam.ndim and lam.shape != (batch,):
            raise ValueError(f"lam must have shape () or ({batch},), got {what(lam)}")
        if lam.device != device and not (lam.ndim == 0 and lam.device.type == "cpu"):
            raise ValueError(f"lam must be on {device}, got {lam.device}")
    elif isinstance(lam, bool) or not isinstance(lam, NUMBERS):
        raise TypeError(f"lam must be a float or a floating tensor, got {what(lam)}")


def check_fraction(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (float, int)):
        raise TypeError(f"{name} must be a float, got {what(value)}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def check_inplace(x: Tensor, lam: Any) -> None:
    """Everything that makes an in-place mix wrong, raised before a byte is written."""
    if isinstance(lam, Tensor) and lam.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("mix_ gives no gradient to lam, got a lam that requires grad; use mix")
    if x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        base = x._base if x._is_view() else x
        if base is not None and base.is_leaf and base.requires_grad:
            raise RuntimeError(
                "x must not be a leaf that requires grad, nor a view of one, to be mixed in place"
            )
        if x._is_view():
            _check_view(x)
    if overlaps(x):
        raise RuntimeError(
            f"x must not overlap itself in memory to be mixed in place, got shape "
            f"{tuple(x.shape)} with strides {x.stride()}"
        )


def _check_view(x: Tensor) -> None:
    """Autograd itself refuses such views only after the write."""
    made = torch._C._autograd._get_creation_meta(x)
    if made != torch._C._autograd.CreationMeta.DEFAULT:
        raise RuntimeError(
            "x must not be one of several views of a tensor (chunk, split, unbind) nor a view "
            f"made without grad, to be mixed in place, got a view of kind {made.name}; use mix"
        )


def overlaps(x: Tensor) -> bool:
    """True where two elements may share an address (sufficient test: strides nest by size)."""
    if x.is_contiguous() or x.numel() == 0:
        return False
    nested: list[tuple[int, int]] = []  # (stride, its reach), by stride; Dynamo cannot sort sizes
    for size, stride in zip(x.shape, x.stride(), strict=True):
        if size > 1:
            at = len(nested)
            while at and nested[at - 1][0] > stride:
                at -= 1
            nested.insert(at, (stride, stride * (size - 1)))
    reach = 0
    for stride, further in nested:
        if stride <= reach:
            return True
        reach += further
    return False


def check_permutation_values(perm: Tensor) -> None:
    n = perm.shape[0]
    if not torch.equal(perm.sort().values, torch.arange(n, device=perm.device)):
        shown = ", ".join(str(int(value)) for value in perm[:8]) + ", ..." * (n > 8)
        raise ValueError(f"perm must be a permutation of 0..{n - 1}, got [{shown}]")


def check_label_values(name: str, target: Tensor, classes: int, ignore_index: int) -> None:
    bad = (target != ignore_index) & ((target < 0) | (target >= classes))
    if bool(bad.any()):
        value = int(target[bad][0])
        raise IndexError(
            f"{name} must hold labels in [0, {classes - 1}] or ignore_index={ignore_index}, "
            f"got {value}"
        )


def check_targets(
    target: Any, num_classes: Any, label_smoothing: Any, ignore_index: Any, dtype: Any
) -> int:
    """The number of classes of a mix_targets call, after judging its arguments."""
    if not isinstance(target, Tensor) or target.dtype not in TARGETS:
        raise TypeError(f"target must be int64 labels or floating, got {what(target)}")
    check_fraction("label_smoothing", label_smoothing)
    check_index("ignore_index", ignore_index)
    if dtype not in FLOATS:
        raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype}")
    if num_classes is not None:
        check_index("num_classes", num_classes)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if target.dtype == torch.int64:
        if target.ndim < 1:
            raise ValueError(f"target must have shape (B,) or (B, d1, ...), got {what(target)}")
        if num_classes is None:
            raise ValueError("num_classes must be given for int64 targets, got None")
        return int(num_classes)
    if target.ndim < 2:
        raise ValueError(f"a float target must have shape (B, C, ...), got {what(target)}")
    if num_classes is not None and num_classes != target.shape[1]:
        raise ValueError(
            f"num_classes must be the target's {target.shape[1]} classes, got {num_classes}"
        )
    return target.shape[1]


def check_index(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {what(value)}")


def check_positive(z_loss: Any, softcap: Any) -> None:
    if isinstance(z_loss, bool) or not isinstance(z_loss, float | int):
        raise TypeError(f"z_loss must be a float, got {what(z_loss)}")
    if softcap is None:
        return
    if isinstance(softcap, bool) or not isinstance(softcap, float | int):
        raise TypeError(f"softcap must be a float or None, got {what(softcap)}")
    if not softcap > 0:
        raise ValueError(f"softcap must be greater than 0, got {softcap}")


def check_loss(
    logits: Tensor,
    target: Any,
    perm: Any,
    target_b: Any,
    weight: Any,
    ignore_index: Any,
    reduction: Any,
) -> None:
    if logits.ndim < 2:
        raise ValueError(f"logits must have shape (B, C, ...), got {what(logits)}")
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    check_index("ignore_index", ignore_index)
    if (perm is None) == (target_b is None):
        came = "neither" if perm is None else "both"
        raise ValueError(f"exactly one of perm and target_b must be given, got {came}")
    _check_loss_target("target", target, logits)
    if target_b is not None:
        _check_loss_target("target_b", target_b, logits)
        if target.is_floating_point() != target_b.is_floating_point():
            kind = what(target)
            raise TypeError(f"target_b must be of target's kind, {kind}, got {what(target_b)}")
    if ignore_index >= 0 and target.is_floating_point():
        raise ValueError(f"ignore_index must be negative with float targets, got {ignore_index}")
    if perm is not None:
        check_perm(perm, logits.shape[0], logits.device)
    if weight is not None:
        _check_weight(weight, logits)


def _check_weight(weight: Any, logits: Tensor) -> None:
    classes = logits.shape[1]
    expected = f"weight must be floating of shape ({classes},)"
    if not isinstance(weight, Tensor) or weight.dtype not in (logits.dtype, torch.float32):
        raise TypeError(f"{expected}, {logits.dtype} or torch.float32, got {what(weight)}")
    if weight.shape != (classes,):
        raise ValueError(f"{expected}, got {what(weight)}")
    if weight.device != logits.device:
        raise ValueError(f"weight must be on {logits.device}, got {weight.device}")


def _check_loss_target(name: str, target: Any, logits: Tensor) -> None:
    if not isinstance(target, Tensor) or target.dtype not in TARGETS:
        raise TypeError(f"{name} must be int64 labels or floating, got {what(target)}")
    expected: tuple[int, ...] = logits.shape
    if target.dtype == torch.int64:
        expected = (logits.shape[0], *logits.shape[2:]) if logits.ndim > 2 else logits.shape[:1]
    if target.shape != expected:
        raise ValueError(f"{name} must have shape {tuple(expected)}, got {what(target)}")
    if target.device != logits.device:
        raise ValueError(f"{name} must be on {logits.device}, got {target.device}")
