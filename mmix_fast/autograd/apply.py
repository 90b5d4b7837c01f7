"""When a call goes through an autograd Function, and how."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function


def needs_autograd(requires_grad: bool) -> bool:
    """Whether autograd must see the call: a Function costs 6 us, so only then."""
    return (requires_grad and torch.is_grad_enabled()) or torch.compiler.is_compiling()


def apply(function: type[Function], *args: Any) -> Any:
    """function.apply, where torch.func is not at work."""
    if torch.compiler.is_compiling():
        return function.apply(*args)
    # What Function.apply does before this is for torch.func alone, and takes 2 us.
    return super(Function, function).apply(*args)  # type: ignore[misc]
