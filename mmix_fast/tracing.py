"""Detects torch.func, forward-mode AD, tracers and fake tensors around a call."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad

functorch_active = torch._C._are_functorch_transforms_active
_is_batched = torch._C._functorch.is_legacy_batchedtensor


def transformed() -> bool:
    """True under torch.func or forward-mode AD; the kernels have no rules for either."""
    return functorch_active() or forward_ad._current_level >= 0


def functionalized() -> bool:
    """True under torch.compile, or under torch.func.functionalize at any level."""
    if torch.compiler.is_compiling():
        return True
    return _inside(torch._C._functorch.TransformType.Functionalize)


def vmapped() -> bool:
    """True under torch.func.vmap, at any level."""
    return functorch_active() and _inside(torch._C._functorch.TransformType.Vmap)


def _inside(transform: object) -> bool:
    layers = torch._C._functorch.get_interpreter_stack() or ()
    return any(at.key() == transform for at in layers)


def batched(grad: Tensor) -> bool:
    """True in a backward with is_grads_batched=True; its legacy vmap is not torch.func's."""
    # Dynamo cannot trace this check, and never traces such a backward.
    return not torch.compiler.is_compiling() and _is_batched(grad)


def beyond_kernels(**arguments: object) -> str:
    """The feature that the call needs and only plain PyTorch has, or "".

    ``arguments``: the arguments for which the kernels compute no gradient.
    """
    if transformed():
        return "rules for torch.func and forward-mode AD"
    if not torch.is_grad_enabled():
        return ""
    found = [n for n, t in arguments.items() if isinstance(t, Tensor) and t.requires_grad]
    return f"gradient for {', '.join(found)}" if found else ""


def readable(*tensors: Tensor | None) -> bool:
    """True if values may be read on the host: plain tensors with data, no tracer, mode or vmap."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    for t in tensors:
        if functorch_active():
            while t is not None and torch._C._functorch.is_gradtrackingtensor(t):
                t = torch._C._functorch.get_unwrapped(t)
            if t is not None and torch._C._functorch.is_functorch_wrapped_tensor(t):
                return False
        if t is not None and (type(t) not in (Tensor, torch.nn.Parameter) or t.is_meta):
            return False
    return True


def copy_into(x: Tensor, value: Tensor, op: str) -> Tensor:
    """x.copy_(value). Where torch.func refuses the write, the error names the op and the cause."""
    try:
        return x.copy_(value)
    except RuntimeError as error:
        if not functorch_active():
            raise
        raise RuntimeError(
            f"{op} cannot write to this x under torch.func, whose transform does not follow the "
            f"write (x comes from outside, or perm or lam is mapped and x is not): use an op that "
            f"makes a new tensor, or give {op} a copy that depends on what is mapped"
        ) from error


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which torch.mm computes with x: that of autocast if it is on, else x's own."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(device.type):  # meta, for one
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def is_dtensor(x: object) -> bool:
    """True for a DTensor. Does not import torch.distributed.tensor, which takes half a second."""
    if type(x) is Tensor or type(x) is torch.nn.Parameter:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)
