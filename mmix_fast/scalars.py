"""Whole numbers and fractions as users give them: Python's, NumPy's scalars and 0-dim arrays.

NumPy is not imported: what comes from it is known by ``operator.index`` and its dtype's kind.
"""

from __future__ import annotations

import numbers
import operator
import reprlib
from typing import Any

import torch
from torch import Tensor

# In a traced graph a number can be a symbol; to convert it would fix its value in the graph.
SYMBOLS = (torch.SymInt, torch.SymFloat)


class _Short(reprlib.Repr):
    """Of nested values the first few, of tensors dtype and shape."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple = 2, 4, 4

    def repr_instance(self, x: object, level: int) -> str:
        return f"<{describe(x)}>" if isinstance(x, Tensor) else super().repr_instance(x, level)


_short = _Short()


def describe(value: object) -> str:
    """``value`` for the end of a message: on one line, and never a whole array or batch."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape and hasattr(value, "dtype"):
        return f"{kind} {value.dtype} of shape {shape}"
    return f"{kind} {' '.join(_short.repr(value).split())}"


def check_index(name: str, value: Any) -> int:
    """A whole number as an int: whatever ``operator.index`` takes, except bool.

    A 0-dim integer tensor on the CPU counts; to read one on a GPU would make the host wait.
    """
    if type(value) is int:
        return value
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    if torch.compiler.is_compiling():
        _refuse_traced(name, value, "int")
    readable = not isinstance(value, bool)
    if isinstance(value, Tensor):
        readable = value.is_cpu and value.ndim == 0 and value.dtype != torch.bool
    if readable:
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be an int, got {describe(value)}")


def check_real(name: str, value: Any, expected: str = "a float") -> float:
    """A number as a float. No tensor: to read it may make the host wait, and drops its gradient."""
    if type(value) is float:
        return value
    if isinstance(value, SYMBOLS):
        return value  # type: ignore[return-value]
    if torch.compiler.is_compiling():
        if isinstance(value, int | float) and not isinstance(value, bool):  # Dynamo's symbols too
            return value
        _refuse_traced(name, value, "float")
    if type(value) is int or _is_real(value):
        return float(value)
    raise TypeError(f"{name} must be {expected}, got {describe(value)}")


def _refuse_traced(name: str, value: Any, kind: str) -> None:
    """In a graph NumPy's numbers are tensors, and none of them has a value."""
    if hasattr(value, "ndim"):
        raise TypeError(
            f"{name} must be Python's {kind} in a compiled graph, got {type(value).__name__}; "
            f"pass {kind}({name})"
        )


def _is_real(value: Any) -> bool:
    if isinstance(value, bool | Tensor):
        return False
    if getattr(value, "ndim", None) == 0:  # a NumPy scalar or 0-dim array
        return getattr(value.dtype, "kind", "") in ("i", "u", "f")
    return isinstance(value, numbers.Real)


def check_fraction(name: str, value: Any) -> float:
    number = value if type(value) is float else check_real(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {number}")
    return number
