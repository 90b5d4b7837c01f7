"""The hooks of ManifoldMixup as objects: they do not travel with a copy or pickle of the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_NOT_SCRIPTED = (
    "torch.jit.script cannot compile the hooks of ManifoldMixup: call its close() first, or use "
    "torch.export.export, or torch.jit.trace, of the model in eval()"
)
_COPY_NOT_SCRIPTED = (
    "this copy of a model with ManifoldMixup keeps hooks that do nothing, and that "
    "torch.jit.script cannot compile: call the copy once, which removes them"
)


class Hook:
    """Calls a method of ManifoldMixup."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return InertHook, ()

    @property
    def __name__(self) -> str:  # the first thing that torch.jit.script asks for
        raise RuntimeError(_NOT_SCRIPTED)


class InertHook:
    """What a copied or unpickled model has in the place of a Hook. It goes when it is called."""

    def __call__(self, module: nn.Module, *args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for number in [n for n, hook in hooks.items() if hook is self]:
                del hooks[number]
                # A hook that gets this number in another process must not inherit these.
                module._forward_pre_hooks_with_kwargs.pop(number, None)
                module._forward_hooks_always_called.pop(number, None)

    @property
    def __name__(self) -> str:
        raise RuntimeError(_COPY_NOT_SCRIPTED)
