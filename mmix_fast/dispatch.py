"""Chooses the backend of a call: the first in BACKENDS that can serve it, by metadata alone."""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import ops, reference
from .autograd.kernels import Kernels

BUILD_ADVICE = "build it with: pip install -e . --no-build-isolation"


@dataclass(frozen=True)
class Status:
    """``usable``: whether a backend works on this machine; ``reasons``: why not, else empty."""

    usable: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Backend:
    """``ops`` has a function for each op; all backends' have the signatures of reference/.

    ``plain``: it runs plain PyTorch, so it has all gradients and rules.
    ``checks_values``: its kernels check labels, perm and box, so Python skips its value checks.
    ``draws``: it has a kernel for sample_mix; for the others, plain PyTorch draws.
    """

    name: str
    ops: Any
    missing: Callable[[], tuple[str, ...]]
    device: str | None = None  # the only device type it serves; None serves all
    plain: bool = False
    checks_values: bool = False
    draws: bool = False

    def serves(self, device: str, beyond: str) -> bool:
        """True if unsupported_reasons would be empty; faster, since it builds no messages."""
        if self.device is not None and device != self.device:  # first, since missing() may import
            return False
        return not (beyond and not self.plain) and not self.missing()

    def unsupported_reasons(self, device: str, beyond: str) -> tuple[str, ...]:
        """Why this backend cannot serve the call; empty if it can.

        ``device``: the device type of the tensors. ``beyond``: a feature that the call needs and
        only plain PyTorch has, or "".
        """
        reasons: tuple[str, ...] = ()
        if self.device is not None and device != self.device:
            reasons += (f"it serves {self.device} tensors, got {device}",)
        if beyond and not self.plain:
            reasons += (f"it has no {beyond}",)
        return self.missing() + reasons


def _cpp_missing() -> tuple[str, ...]:
    if ops.LOAD_ERROR is None:
        return ()
    return (f"the compiled extension is missing ({ops.LOAD_ERROR}); {BUILD_ADVICE}",)


# Asked here, since Dynamo cannot trace the question.
_CUDA_BUILT = ops.LOAD_ERROR is None and torch._C._dispatch_has_kernel_for_dispatch_key(
    "mmix_fast::mix", "CUDA"
)
_cuda_available = functools.cache(torch.cuda.is_available)  # not at import: it blocks a later fork


def _cuda_missing() -> tuple[str, ...]:
    if ops.LOAD_ERROR is not None:
        return _cpp_missing()
    reasons: tuple[str, ...] = ()
    if not _CUDA_BUILT:
        reasons += (
            "the extension was built without CUDA; build it with: "
            "MMIX_FAST_CUDA=1 pip install -e . --no-build-isolation",
        )
    # Dynamo traces into a cached function, and warns; this one it knows.
    found = torch.cuda.is_available() if torch.compiler.is_compiling() else _cuda_available()
    if not found:
        reasons += ("torch finds no CUDA device",)
    return reasons


_triton_error = ""  # why triton cannot be imported; "" if it can, or was not tried yet


def _triton_missing() -> tuple[str, ...]:
    global _triton_error
    if not _triton_error:
        try:
            from .triton import backend  # noqa: F401
        except Exception as error:  # not installed, or broken
            _triton_error = f"triton cannot be imported ({error}); pip install triton"
    if _triton_error:
        return (_triton_error,)
    if _TRITON_INTERPRETED or torch.cuda.is_available() or torch.xpu.is_available():
        return ()
    return ("torch sees no GPU (CUDA, ROCm or XPU)",)


def _never_missing() -> tuple[str, ...]:
    return ()


# The Triton backend serves CUDA and ROCm tensors, or XPU tensors (Intel GPUs). In tests, Triton's
# interpreter serves CPU tensors.
_TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_GPU = "xpu" if torch.xpu.is_available() else "cuda"

_COMPILED = Kernels("mmix_fast")
CPP = Backend("cpp", _COMPILED, _cpp_missing, "cpu", checks_values=True)
CUDA = Backend("cuda", _COMPILED, _cuda_missing, "cuda", draws=True)
TRITON = Backend(
    "triton",
    Kernels("mmix_fast_triton"),
    _triton_missing,
    "cpu" if _TRITON_INTERPRETED else _GPU,
)
REFERENCE = Backend("reference", reference, _never_missing, plain=True)
BACKENDS: tuple[Backend, ...] = (CPP, CUDA, TRITON, REFERENCE)  # in order of preference

_forced: str | None = os.environ.get("MMIX_FAST_BACKEND") or None
_warned = False


def _by_name(name: str) -> Backend:
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    known = ", ".join(b.name for b in BACKENDS)
    raise ValueError(f"backend must be one of {known}, got {name!r}")


# The use_backend block that this thread or task entered last. It may already be closed, since a
# generator can enter a block in one context and leave it in another.
_entered: ContextVar[_Block] = ContextVar("mmix_fast.use_backend")


class _Block:
    """One use_backend block. The outermost, _ENVIRONMENT, holds MMIX_FAST_BACKEND."""

    def __init__(self, backend: str | None, outer: _Block | None) -> None:
        self.backend, self.outer, self.open = backend, outer, True

    # The block entered last in the caller's context, or ``self`` if there is none. The getter is a
    # C function (ContextVar.get), so Dynamo also evaluates it in guards: a compiled graph follows
    # the block of its caller.
    entered = property(_entered.get)

    def innermost_open(self) -> _Block:
        block = self
        while not block.open and block.outer is not None:
            block = block.outer
        return block


_ENVIRONMENT = _Block(_forced, None)
_open: set[_Block] = set()  # the open blocks of the whole process
_forcing = _forced is not None  # True if any block forces a backend; most calls check only this
_lock = threading.RLock()  # re-entrant: a finalizer may end a generator's block while it is held
_traced: _Block | None = None  # the block that Dynamo is tracing; None at run time


def _current_block() -> _Block:
    if _traced is not None:
        return _traced
    block: _Block = _ENVIRONMENT.entered
    if block is _ENVIRONMENT and not torch.compiler.is_dynamo_compiling():
        block = _block_of_backward()
    return block.innermost_open()


def _block_of_backward() -> _Block:
    """The block of the code that called backward(), for code in a thread of the autograd engine.

    So a checkpoint recomputes its forward with the backend forced around backward(). PyTorch keeps
    the caller's context for these threads.
    """
    context = None
    if torch._C._is_key_in_tls("context"):
        context = torch._C._get_obj_in_tls("context")
    return _ENVIRONMENT if context is None else context.get(_entered, _ENVIRONMENT)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one backend inside the ``with`` block, in this thread or task.

    A new thread is not affected; an asyncio task started inside the block is. A block that has
    ended forces nothing, whichever context entered or left it. Backward uses the backend of its
    forward.

    Args:
        name: "cpp", "cuda", "triton" or "reference".

    Raises:
        ValueError: on entry, for an unknown name.
        RuntimeError: at a call that the backend cannot serve.

    >>> with mmix_fast.use_backend("reference"):
    ...     y = mmix_fast.mix(x, perm, 0.3)
    """
    global _forcing, _traced
    backend = _by_name(name)
    if torch.compiler.is_dynamo_compiling():  # Dynamo cannot trace ContextVar.set or a lock
        before = _forcing, _traced
        _forcing, _traced = True, _Block(backend.name, None)
        try:
            yield
        finally:
            _forcing, _traced = before
        return
    block = _Block(backend.name, _ENVIRONMENT.entered.innermost_open())
    _entered.set(block)
    _note(block)
    try:
        yield
    finally:
        block.open = False
        _note(block)
        _entered.set(_ENVIRONMENT.entered.innermost_open())


def _note(block: _Block) -> None:
    global _forcing
    with _lock:
        (_open.add if block.open else _open.discard)(block)
        _forcing = bool(_open) or _ENVIRONMENT.backend is not None


def backends() -> dict[str, Status]:
    """For each backend: whether it is usable on this machine, and the reasons if it is not.

    >>> mmix_fast.backends()["reference"]
    Status(usable=True, reasons=())
    """
    return {b.name: Status(not b.missing(), b.missing()) for b in BACKENDS}


def select(x: Tensor, beyond: str = "") -> Backend:
    """The forced backend, or the first that can serve the call. Its time matters in small calls."""
    device = "cpu" if x.is_cpu else x.device.type  # x.device.type takes 0.4 us
    if _forcing:
        forced = _current_block().backend
        if forced is not None:
            backend = _by_name(forced)
            reasons = backend.unsupported_reasons(device, beyond)
            if reasons:
                why = "; ".join(reasons)
                raise RuntimeError(f"backend {forced!r} cannot serve this call: {why}")
            return backend
    for backend in BACKENDS:
        if backend.serves(device, beyond):
            break  # always reached: reference serves every call
    missing = ops.LOAD_ERROR is not None and backend.plain
    if missing and not torch.compiler.is_compiling():
        _warn_once()
    return backend


def select_draw(device: torch.device, beyond: str) -> Backend | None:
    """The backend whose kernel draws for sample_mix; None if plain PyTorch does.

    Every backend takes such a draw, so a forced one that cannot make it is no error.
    """
    forced = _current_block().backend if _forcing else None
    for backend in BACKENDS:
        if backend.draws and forced in (None, backend.name) and backend.serves(device.type, beyond):
            return backend
    return None


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"mmix_fast: the compiled extension is missing ({ops.LOAD_ERROR}), plain PyTorch "
            f"is used instead; {BUILD_ADVICE}",
            RuntimeWarning,
            stacklevel=4,
        )
