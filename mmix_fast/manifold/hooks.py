"""Hook objects of ManifoldMixup. A copy or pickle of the model gets inert hooks instead."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
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
    """Calls a method of Mixing. Copying or pickling it gives an InertHook."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return InertHook, ()

    @property
    def __name__(self) -> str:  # torch.jit.script reads this first
        raise RuntimeError(_NOT_SCRIPTED)


class RootHook(Hook):
    """A hook of the root. ``outside`` replaces ``call`` where torch.compile compiles the root alone.

    Dynamo then runs the hooks of the root as frames of their own, before and after the frame of its
    forward. It must not compile them, so that they can draw on the host. Where a graph holds the
    call of the root (a compiled step), it must trace them.
    """

    def __init__(self, call: Callable[..., Any], outside: Callable[..., Any]) -> None:
        super().__init__(call)
        self.outside = torch.compiler.disable(outside)  # nor what they call
        # `skip` marks the code, for frames of their own, and the function, for traced calls. Another
        # function of the same code takes the second mark.
        code = RootHook.__call__.__code__
        torch._dynamo.decorators.skip(FunctionType(code, globals()))

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or not torch._C._dynamo.eval_frame.get_eval_frame_callback():
            return self.call(*args)
        return self.outside(*args)


class InertHook:
    """Replaces a Hook in a copied or unpickled model. Removes itself at the first eager call."""

    def __call__(self, module: nn.Module, *args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for number in [n for n, hook in hooks.items() if hook is self]:
                del hooks[number]
                # A hook that gets the same id in another process must not inherit these flags.
                module._forward_pre_hooks_with_kwargs.pop(number, None)
                module._forward_hooks_always_called.pop(number, None)

    @property
    def __name__(self) -> str:
        raise RuntimeError(_COPY_NOT_SCRIPTED)
