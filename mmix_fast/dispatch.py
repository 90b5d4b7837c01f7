"""Which backend serves a call: an ordered tuple, and nothing but metadata decides."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops

BUILD_ADVICE = "build it with: pip install -e . --no-build-isolation"


@dataclass(frozen=True)
class Status:
    usable: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Backend:
    """``namespace`` names the torch.ops namespace of its kernels; "" means plain PyTorch.

    ``checks_values``: its kernels raise for bad labels and a bad perm, so nobody else need look.
    ``pastes_bytes``: cutmix_ pastes elements that are no numbers to it, of 1, 2, 4 or 8 bytes.
    """

    name: str
    namespace: str
    missing: Callable[[], tuple[str, ...]]
    device: str | None = None  # the only device type it serves; None serves all
    checks_values: bool = False
    pastes_bytes: bool = False

    def serves(self, device: str, extra_grad: str, as_bytes: bool = False) -> bool:
        """Whether there is no unsupported_reasons, without the time to say them."""
        if self.device is not None and device != self.device:  # asked first: missing() may import
            return False
        if as_bytes and not self.pastes_bytes:
            return False
        return not (self.namespace and extra_grad) and not self.missing()

    def unsupported_reasons(
        self, device: str, extra_grad: str, as_bytes: bool = False
    ) -> tuple[str, ...]:
        """``device``: type of the call's tensors; ``extra_grad``: names of the arguments besides x
        or logits that require grad."""
        reasons: tuple[str, ...] = ()
        if self.device is not None and device != self.device:
            reasons += (f"it serves {self.device} tensors, got {device}",)
        if self.namespace and extra_grad:
            reasons += (f"it has no gradient for {extra_grad}",)
        if as_bytes and not self.pastes_bytes:
            reasons += ("its cutmix_ serves float16, bfloat16, float32 and float64 only",)
        return self.missing() + reasons


def _cpp_missing() -> tuple[str, ...]:
    if ops.LOAD_ERROR is None:
        return ()
    return (f"the compiled extension is missing ({ops.LOAD_ERROR}); {BUILD_ADVICE}",)


@functools.cache
def _cuda_missing() -> tuple[str, ...]:
    if ops.LOAD_ERROR is not None:
        return _cpp_missing()
    reasons: tuple[str, ...] = ()
    if not torch._C._dispatch_has_kernel_for_dispatch_key("mmix_fast::mix", "CUDA"):
        reasons += (
            "the extension was built without CUDA; build it with: "
            "MMIX_FAST_CUDA=1 pip install -e . --no-build-isolation",
        )
    if not torch.cuda.is_available():
        reasons += ("torch finds no CUDA device",)
    return reasons


_triton_error = ""  # why triton cannot be imported; "" also before its first use


def _triton_missing() -> tuple[str, ...]:
    global _triton_error
    if not _triton_error:
        try:
            from . import triton_backend  # noqa: F401
        except Exception as error:  # not installed, or broken in whatever way
            _triton_error = f"triton cannot be imported ({error}); pip install triton"
    if _triton_error:
        return (_triton_error,)
    if _TRITON_INTERPRETED or torch.cuda.is_available() or torch.xpu.is_available():
        return ()
    return ("torch sees no GPU (CUDA, ROCm or XPU)",)


def _never_missing() -> tuple[str, ...]:
    return ()


# CUDA and ROCm tensors, or those of Intel GPUs; Triton's interpreter, for tests, on the CPU.
_TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_GPU = "xpu" if torch.xpu.is_available() else "cuda"

CPP = Backend("cpp", "mmix_fast", _cpp_missing, "cpu", checks_values=True, pastes_bytes=True)
CUDA = Backend("cuda", "mmix_fast", _cuda_missing, "cuda")
TRITON = Backend(
    "triton", "mmix_fast_triton", _triton_missing, "cpu" if _TRITON_INTERPRETED else _GPU
)
REFERENCE = Backend("reference", "", _never_missing, pastes_bytes=True)
BACKENDS: tuple[Backend, ...] = (CPP, CUDA, TRITON, REFERENCE)  # in order of preference

# Process-wide, as torch.backends' flags are: the autograd engine's threads must see it too.
_forced: str | None = os.environ.get("MMIX_FAST_BACKEND") or None
_warned = False


def _by_name(name: str) -> Backend:
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    known = ", ".join(b.name for b in BACKENDS)
    raise ValueError(f"backend must be one of {known}, got {name!r}")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one backend inside the ``with`` block, for the whole process.

    Raises ValueError on entry for an unknown name; RuntimeError at a call it cannot serve.

    >>> with mmix_fast.use_backend("reference"):
    ...     y = mmix_fast.mix(x, perm, 0.3)
    """
    global _forced
    backend = _by_name(name)
    before, _forced = _forced, backend.name
    try:
        yield
    finally:
        _forced = before


def backends() -> dict[str, Status]:
    """Each backend, whether it is usable here, and the reasons where it is not."""
    return {b.name: Status(not b.missing(), b.missing()) for b in BACKENDS}


def select(x: Tensor, extra_grad: str = "", as_bytes: bool = False) -> Backend:
    """The forced backend, or the first that can serve the call; small calls feel its time."""
    device = "cpu" if x.is_cpu else x.device.type  # which takes 0.4 us
    if _forced is not None:
        backend = _by_name(_forced)
        reasons = backend.unsupported_reasons(device, extra_grad, as_bytes)
        if reasons:
            raise RuntimeError(f"backend {_forced!r} cannot serve this call: {'; '.join(reasons)}")
        return backend
    for backend in BACKENDS:
        if backend.serves(device, extra_grad, as_bytes):
            break  # reference always does
    missing = ops.LOAD_ERROR is not None and not backend.namespace
    if missing and not torch.compiler.is_compiling():
        _warn_once()
    return backend


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
