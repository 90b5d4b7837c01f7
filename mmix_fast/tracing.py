"""Who else looks at a call: torch.func, forward-mode AD, tracers, fake tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

functorch_active = torch._C._are_functorch_transforms_active
_is_batched = torch._C._functorch.is_legacy_batchedtensor


def transformed() -> bool:
    """Whether torch.func or forward-mode AD must see the call; no kernel has rules for them."""
    return functorch_active() or forward_ad._current_level >= 0


def functionalized() -> bool:
    """Whether torch.func.functionalize, or Dynamo, sees the call besides other transforms."""
    if torch.compiler.is_compiling():
        return True
    return _inside(torch._C._functorch.TransformType.Functionalize)


def vmapped() -> bool:
    """Whether torch.func.vmap sees the call, at any level."""
    return functorch_active() and _inside(torch._C._functorch.TransformType.Vmap)


def _inside(transform: object) -> bool:
    layers = torch._C._functorch.get_interpreter_stack() or ()
    return any(at.key() == transform for at in layers)


def recorded() -> bool:
    """Under torch.export, torch.jit.trace or make_fx, which would keep one draw for ever."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    proxy = torch._C._TorchDispatchModeKey.PROXY
    return torch._C._is_tracing() or torch._C._get_dispatch_mode(proxy) is not None


def batched(grad: Tensor) -> bool:
    """Whether a backward runs for is_grads_batched=True, by a vmap that is not torch.func's."""
    # Dynamo cannot ask, and traces no such backward.
    return not torch.compiler.is_compiling() and _is_batched(grad)


def beyond_kernels(**arguments: object) -> str:
    """What the call wants of a backend that only plain PyTorch gives, or "".

    ``arguments``: those that no kernel has a gradient for.
    """
    if transformed():
        return "rules for torch.func and forward-mode AD"
    if not torch.is_grad_enabled():
        return ""
    found = [n for n, t in arguments.items() if isinstance(t, Tensor) and t.requires_grad]
    return f"gradient for {', '.join(found)}" if found else ""


def readable(*tensors: Tensor | None) -> bool:
    """Whether the values may be read on the host: real ones, and nobody traces the call."""
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


@contextmanager
def explained_writes(op: str) -> Iterator[None]:
    """torch.func refuses some writes in place, for reasons that name no op."""
    try:
        yield
    except RuntimeError as error:
        if not functorch_active():
            raise
        raise RuntimeError(
            f"{op} cannot write to this x under torch.func, whose transform does not follow the "
            f"write (x comes from outside, or perm or lam is mapped and x is not): use an op that "
            f"makes a new tensor, or give {op} a copy that depends on what is mapped"
        ) from error
