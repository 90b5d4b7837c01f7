"""Hook objects of ManifoldMixup. A copy or pickle of the model gets inert hooks instead."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
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
    """A hook of the root. ``outside`` replaces ``call`` where the root alone is compiled.

    Dynamo then runs the root's hooks as frames of their own, before and after the frame of its
    forward. It must not compile them, so that they can draw on the host. Where a graph holds the
    call of the root (a compiled step), it must trace them.
    """

    def __init__(self, call: Callable[..., Any], outside: Callable[..., Any]) -> None:
        super().__init__(call)
        self.outside = torch.compiler.disable(outside)  # nor what they call
        # `skip` marks the code, which frames of their own ask, and the function, which tracing
        # asks: so it gets another function of the same code.
        code = RootHook.__call__.__code__
        torch._dynamo.decorators.skip(FunctionType(code, globals()))

    def __call__(self, *args: Any) -> Any:
        if (
            torch.compiler.is_compiling()
            or not torch._C._dynamo.eval_frame.get_eval_frame_callback()
        ):
            return self.call(*args)
        return self.outside(*args)


def add_forward(root: nn.Module) -> None:
    """Gives a root whose forward is torch's own (nn.Sequential) one of ours.

    Dynamo compiles no frame of torch.nn: torch.compile would trace the hooks together with such a
    forward, and model.compile() (torch 2.10, 2.11) would compile the children one by one.
    """
    if "forward" not in vars(root) and type(root).forward.__module__.startswith(
        "torch.nn.modules."
    ):
        # Dynamo keeps graphs by code object, so each root gets its own. A bound method, since a
        # deep copy binds it to the copy; an unpickled root gets the forward of its class.
        added = torch.jit.unused(FunctionType(forward.__code__.replace(), globals()))
        root.forward = MethodType(added, root)  # torch.jit.script then reads the hooks, and says so


def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return type(self).forward(self, *args, **kwargs)


def remove_forward(root: nn.Module) -> None:
    added = vars(root).get("forward")
    if isinstance(added, MethodType) and added.__func__.__module__ == __name__:
        del root.forward


class InertHook:
    """Replaces a Hook in a copied or unpickled model. Removes itself at the first eager call."""

    def __call__(self, module: nn.Module, *args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        remove_forward(module)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for number in [n for n, hook in hooks.items() if hook is self]:
                del hooks[number]
                # A hook that gets the same id in another process must not inherit these flags.
                module._forward_pre_hooks_with_kwargs.pop(number, None)
                module._forward_hooks_always_called.pop(number, None)

    @property
    def __name__(self) -> str:
        raise RuntimeError(_COPY_NOT_SCRIPTED)
