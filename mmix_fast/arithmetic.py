"""The dtype that an op computes in, and λ as a tensor of that dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from .tracing import readable, transformed


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic on tensors of these dtypes."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def as_lam(lam: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """λ as a tensor of ``dtype``, the compute dtype, on ``device``; does not make the host wait."""
    if isinstance(lam, Tensor):
        if lam.dtype == dtype and lam.device == device:
            return lam
        if lam.device == device or lam.requires_grad or transformed() or not readable(lam):
            return lam.to(device=device, dtype=dtype, non_blocking=True)
        lam = lam.item()  # it is on the CPU
    if torch.compiler.is_compiling():
        # as_tensor, full and tensor would specialise the graph on the value.
        return torch.ones((), dtype=dtype, device=device) * lam
    # On a GPU a fill: a copy from pageable memory cannot be captured in a CUDA graph. On the CPU
    # torch.full takes twice as long.
    make = torch.scalar_tensor if device.type == "cpu" else _filled
    try:
        return make(lam, dtype=dtype, device=device)
    except RuntimeError:  # beyond float32's range: rounds to inf
        return make(lam, dtype=torch.float64, device=device).to(dtype)


def _filled(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=dtype, device=device)
