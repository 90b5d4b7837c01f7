"""Checks of user arguments; each message names what was expected and what was given.

Numbers are checked in scalars.py, targets and the options of a loss in validation_targets.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .layouts import overlaps, share_memory
from .scalars import SYMBOLS, check_real
from .scalars import check_fraction as check_fraction
from .scalars import check_index as check_index
from .scalars import describe as describe
from .tracing import functorch_active

# Each microsecond of these checks shows in small calls: build no object that is not needed.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NUMBERS = (float, int, *SYMBOLS)
_validate_everywhere = os.environ.get("MMIX_FAST_VALIDATE", "0") not in ("", "0")


def set_validation(enabled: bool) -> None:
    """Check values (labels, perm, box) on every device, at the cost of a host sync on a GPU.

    The CPU's kernels always check them. ``MMIX_FAST_VALIDATE=1`` in the environment does the same
    from the start.

    Args:
        enabled: False checks on the CPU only, as at the start.

    >>> mmix_fast.set_validation(True)
    """
    global _validate_everywhere
    _validate_everywhere = bool(enabled)


def must_check_values(device: torch.device) -> bool:
    """True if values are to be checked on the host: on the CPU, or after set_validation(True).

    Never inside a compiled graph.
    """
    return not torch.compiler.is_compiling() and (device.type == "cpu" or _validate_everywhere)


def check_tensor(x: Any, name: str = "x", advice: str = "") -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {describe(x)}{advice}")


def check_x(x: Any, name: str = "x") -> None:
    if isinstance(x, Tensor) and x.dtype in FLOATS:
        return
    check_tensor(x, name)
    raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {describe(x)}")


def check_logits(logits: Any, name: str = "logits") -> None:
    """Must run before any code reads the logits' shape. ``name``: logits, or a head's features."""
    if not isinstance(logits, Tensor):
        advice = ""
        if hasattr(logits, "logits"):
            advice = "; pass its .logits"
        elif isinstance(logits, Mapping) and "logits" in logits:
            advice = "; pass its ['logits']"
        check_tensor(logits, name, advice)
    check_x(logits, name)
    if logits.ndim < 2:
        raise ValueError(f"{name} must have shape (B, C, ...), got {describe(logits)}")


def check_dim(x: Tensor, dim: int) -> int:
    if type(dim) is int and 0 <= dim < x.ndim:
        return dim
    if x.ndim == 0:
        raise ValueError("x must have a batch dimension, got shape ()")
    dim = check_index("dim", dim)
    if not -x.ndim <= dim < x.ndim:
        raise IndexError(f"dim must be in [{-x.ndim}, {x.ndim - 1}], got {dim}")
    return dim % x.ndim


def check_perm(perm: Any, batch: int, device: torch.device) -> None:
    if not isinstance(perm, Tensor) or perm.dtype != torch.int64:
        raise TypeError(f"perm must be int64 of shape ({batch},), got {describe(perm)}")
    if perm.shape != (batch,):
        raise ValueError(f"perm must be int64 of shape ({batch},), got {describe(perm)}")
    if perm.device != device:
        raise ValueError(f"perm must be on {device}, got {perm.device}")


def check_other(other: Any, x: Tensor, perm: Any, dim: int) -> None:
    """Checks ``other`` and perm, which may be None, by type, dtype, shape and device."""
    if not isinstance(other, Tensor) or other.dtype != x.dtype:
        raise TypeError(f"other must be {_like(x, dim)}, got {describe(other)}")
    same = other.ndim == x.ndim and other.shape[:dim] == x.shape[:dim]
    if not same or other.shape[dim + 1 :] != x.shape[dim + 1 :]:
        raise ValueError(f"other must be {_like(x, dim)}, got {describe(other)}")
    if other.device != x.device:
        raise ValueError(f"other must be on {x.device}, got {other.device}")
    batch = x.shape[dim]
    if perm is None:
        if other.shape[dim] != batch:
            raise ValueError(
                f"other must have {batch} samples, as x, where perm is None, got {describe(other)}"
            )
        return
    check_perm(perm, batch, x.device)
    if batch and not other.shape[dim]:
        raise IndexError(f"other must have samples for perm to name, got {describe(other)}")


def _like(x: Tensor, dim: int) -> str:
    sizes = ["N" if d == dim else str(size) for d, size in enumerate(x.shape)]
    return f"{str(x.dtype).removeprefix('torch.')} of shape ({', '.join(sizes)}) for any N"


def check_lam(lam: Any, batch: int, device: torch.device) -> float | Tensor:
    """Returns λ as a Python number, or as a tensor of shape () or (batch,)."""
    if isinstance(lam, Tensor):
        if lam.dtype not in FLOATS and not lam.is_floating_point():
            raise TypeError(f"lam must be a float or a floating tensor, got {describe(lam)}")
        if lam.ndim and lam.shape != (batch,):
            lam = _without_ones(lam, batch)
        if lam.device != device and not (lam.ndim == 0 and lam.device.type == "cpu"):
            raise ValueError(f"lam must be on {device}, got {lam.device}")
    elif not isinstance(lam, NUMBERS) or isinstance(lam, bool):
        return _lam_of_another_type(lam)
    return lam


def _without_ones(lam: Tensor, batch: int) -> Tensor:
    """Drops sizes of 1. The result is a view, so the gradient keeps lam's own shape."""
    if lam.shape[0] == batch and all(size == 1 for size in lam.shape[1:]):
        return lam.reshape(batch)  # before the next rule: at batch 1, one element is per sample
    if lam.numel() == 1:
        return lam.reshape(())
    raise ValueError(
        f"lam must have shape () or ({batch},), either with any number of 1s after it, "
        f"got {describe(lam)}"
    )


def _lam_of_another_type(lam: Any) -> float | Tensor:
    ndim = getattr(lam, "ndim", None)
    if ndim == 0 and torch.compiler.is_compiling():  # NumPy's; a tensor in the graph
        traced = torch.as_tensor(lam)
        if traced.dtype != torch.bool and not traced.is_complex():
            return traced.to(torch.float64)
    expected = "a float or a floating tensor"
    if isinstance(lam, list | tuple) or ndim:
        expected += " (torch.as_tensor makes one)"
    return check_real("lam", lam, expected)


def check_inplace(x: Tensor, lam: Any, other: Tensor | None = None) -> None:
    """Raises, before anything is written, if an in-place mix of x would be wrong."""
    if isinstance(lam, Tensor) and lam.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            "lam must not require grad where x is mixed in place, got a lam that does: "
            "an op in place gives no gradient to lam; mix does"
        )
    followed = x.requires_grad or (other is not None and other.requires_grad)
    if followed and torch.is_grad_enabled() and not torch.compiler.is_compiling():
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
    if other is not None and _has_address(x) and _has_address(other) and share_memory(x, other):
        raise RuntimeError(
            f"other must not share memory with x, which is mixed in place, got views of shape "
            f"{tuple(x.shape)} and {tuple(other.shape)} that may overlap; use mix"
        )


def _has_address(x: Tensor) -> bool:
    """False for tracers and fakes. There the mix is made out of place first, and so is right."""
    if torch.compiler.is_compiling() or functorch_active():
        return False
    return type(x) in (Tensor, torch.nn.Parameter) and not x.is_meta


def _check_view(x: Tensor) -> None:
    """Refuses views that autograd would refuse only after the write."""
    made = torch._C._autograd._get_creation_meta(x)
    if made != torch._C._autograd.CreationMeta.DEFAULT:
        raise RuntimeError(
            "x must not be one of several views of a tensor (chunk, split, unbind) nor a view "
            f"made without grad, to be mixed in place, got a view of kind {made.name}; "
            "use mix, or x.clone()"
        )


def check_permutation_values(perm: Tensor) -> None:
    n = perm.shape[0]
    if not torch.equal(perm.sort().values, torch.arange(n, device=perm.device)):
        shown = ", ".join(str(int(value)) for value in perm[:8]) + ", ..." * (n > 8)
        raise ValueError(f"perm must be a permutation of 0..{n - 1}, got [{shown}]")


def check_index_values(perm: Tensor, n: int) -> None:
    """For ``other``: indices of its n samples, repeats allowed."""
    if perm.numel() == 0:
        return
    low, high = (int(value) for value in perm.aminmax())
    if low < 0 or high >= n:
        raise IndexError(
            f"perm must hold indices of other in [0, {n - 1}], got {low if low < 0 else high}"
        )


def check_label_values(name: str, target: Tensor, classes: int, ignore_index: int | None) -> None:
    if target.numel() == 0:
        return
    low, high = target.aminmax()
    if low >= 0 and high < classes:  # the common case, without a mask
        return
    bad = (target < 0) | (target >= classes)
    ignored = ""
    if ignore_index is not None:
        bad &= target != ignore_index
        ignored = f" or ignore_index={ignore_index}"
    if bool(bad.any()):
        value = int(target[bad][0])
        raise IndexError(f"{name} must hold labels in [0, {classes - 1}]{ignored}, got {value}")
