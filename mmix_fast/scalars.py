"""Checks integer and real arguments: Python numbers, NumPy scalars and 0-dim NumPy arrays.

NumPy is not imported: its values are recognized by ``operator.index`` and their dtype's kind.
"""

from __future__ import annotations

import numbers
import operator
import reprlib
from typing import Any

import torch
from torch import Tensor

# In a traced graph a number can be symbolic; converting it would specialize the graph on its value.
SYMBOLS = (torch.SymInt, torch.SymFloat)


class _Short(reprlib.Repr):
    """Shows only the first few items of a container, and only dtype and shape of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple = 2, 4, 4

    def repr_instance(self, x: object, level: int) -> str:
        return f"<{describe(x)}>" if isinstance(x, Tensor) else super().repr_instance(x, level)


_short = _Short()


def describe(value: object) -> str:
    """Describes ``value`` for an error message: on one line, never a whole array or batch."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape and hasattr(value, "dtype"):
        return f"{kind} {value.dtype} of shape {shape}"
    return f"{kind} {' '.join(_short.repr(value).split())}"


def check_index(name: str, value: Any) -> int:
    """Returns an integer as an int. Accepts what ``operator.index`` accepts, except bool.

    A 0-dim integer tensor is accepted on the CPU only: reading one on a GPU makes the host wait.
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
    """A number as a float. Tensors are refused: reading one may block and drops its gradient."""
    if type(value) is float:
        return value
    if isinstance(value, SYMBOLS):
        return value  # type: ignore[return-value]
    if torch.compiler.is_compiling():
        if isinstance(value, int | float) and not isinstance(value, bool):  # symbolic ones too
            return value
        _refuse_traced(name, value, "float")
    if type(value) is int or _is_real(value):
        return float(value)
    raise TypeError(f"{name} must be {expected}, got {describe(value)}")


def _refuse_traced(name: str, value: Any, kind: str) -> None:
    """Raises for a NumPy number in a compiled graph: there it is a tensor without a value."""
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


def check_positive(name: str, value: Any, expected: str) -> float:
    number = check_real(name, value, expected)
    if not number > 0:
        raise ValueError(f"{name} must be greater than 0, got {number}")
    return number
