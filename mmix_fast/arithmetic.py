"""The dtype that an op computes in, and λ as a tensor of that dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic on tensors of these dtypes."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def as_lam(lam: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """λ as a tensor of ``dtype``, the compute dtype, on ``device``; does not make the host wait."""
    if isinstance(lam, Tensor):
        if lam.dtype == dtype and lam.device == device:
            return lam
        return lam.to(device=device, dtype=dtype, non_blocking=True)
    if torch.compiler.is_compiling():
        # as_tensor, full and tensor would specialise the graph on the value.
        return torch.ones((), dtype=dtype, device=device) * lam
    # Made on the CPU: on a GPU as default device, the host would wait. torch.tensor takes twice
    # as long.
    cpu = device if device.type == "cpu" else torch.device("cpu")  # torch.device("cpu"): 0.5 us
    try:
        made = torch.scalar_tensor(lam, dtype=dtype, device=cpu)
    except RuntimeError:  # beyond float32's range: rounds to inf
        made = torch.scalar_tensor(lam, dtype=torch.float64, device=cpu).to(dtype)
    return made if cpu == device else made.to(device, non_blocking=True)
