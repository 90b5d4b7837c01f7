"""Decides whether a call needs an autograd Function, and applies one with little overhead."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function


def needs_autograd(requires_grad: bool) -> bool:
    """True if autograd or torch.compile must trace this call; otherwise Function.apply (about 6 us)
    is skipped.
    """
    return (requires_grad and torch.is_grad_enabled()) or torch.compiler.is_compiling()


def apply(function: type[Function], *args: Any) -> Any:
    """function.apply, for calls that are not under torch.func."""
    if torch.compiler.is_compiling():
        return function.apply(*args)
    # Skips the part of Function.apply that only torch.func needs; it takes 2 us.
    return super(Function, function).apply(*args)  # type: ignore[misc]
