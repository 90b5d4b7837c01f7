"""Loads the compiled extension (only here), defines its ops, and registers their fake kernels."""

from __future__ import annotations

import importlib
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .arithmetic import compute_dtype
from .linear_chunks import linear_cross_entropy
from .schemas import LINEAR, SCHEMAS

_libraries: list[torch.library.Library] = []  # an op exists as long as the library that defines it


def kernel(namespace: str, name: str) -> Any:
    return getattr(getattr(torch.ops, namespace), name).default


def _fake_mix(x: Tensor, perm: Tensor, lam: Tensor, dim: int, adjoint: bool) -> Tensor:
    return torch.empty_like(x)


def _fake_mix_other(x: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(x)


def _fake_nothing(*args: Any) -> None:
    return None


def empty_soft_targets(target: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    inner = target.shape[1:] if target.dtype == torch.int64 else target.shape[2:]
    return target.new_empty((target.shape[0], num_classes, *inner), dtype=dtype)


def _fake_mix_targets(
    target: Tensor,
    perm: Tensor | None,
    lam: Tensor,
    num_classes: int,
    label_smoothing: float,
    ignore_index: int,
    dtype: torch.dtype,
    target_b: Tensor | None = None,
) -> Tensor:
    return empty_soft_targets(target, num_classes, dtype)


def _fake_mix_batch(x: Tensor, *args: Any) -> Tensor:
    target, _, _, *rest = args
    return _fake_mix_targets(target, target, target, *rest)


def _fake_sample_mix(
    key: Tensor, batch: int, per_sample: bool, *args: Any
) -> tuple[Tensor, Tensor]:
    lams = (batch,) if per_sample else ()
    return key.new_empty(batch), key.new_empty(lams, dtype=torch.float32)


def _fake_cross_entropy(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    reduction, upstream = args[7], args[-1]
    acc = compute_dtype(logits.dtype)
    rows = logits.shape[:1] + logits.shape[2:]
    loss = logits.new_empty(rows if reduction == "none" else (), dtype=acc)
    gradient = logits.new_empty(0) if upstream is None else torch.empty_like(logits)
    count = math.prod(rows)  # not rows.numel(), which specializes a symbolic size
    return loss, logits.new_empty((count, 2), dtype=acc), gradient


def _fake_cross_entropy_backward(grad: Tensor, stats: Tensor, logits: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(logits)


def _fake_cross_entropy_inplace(logits: Tensor, *args: Any) -> Tensor:
    return logits.new_empty((), dtype=compute_dtype(logits.dtype))


def _fake_cross_entropy_part(logits: Tensor, *args: Any) -> Tensor:
    rows = math.prod(logits.shape[:1] + logits.shape[2:])
    return logits.new_empty((rows, 4), dtype=compute_dtype(logits.dtype))


def _fake_binary_cross_entropy(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    reduction, upstream = args[6], args[-1]
    acc = compute_dtype(logits.dtype)
    every = reduction == "none"
    loss = torch.empty_like(logits, dtype=acc) if every else logits.new_empty((), dtype=acc)
    return loss, logits.new_empty(0) if upstream is None else torch.empty_like(logits)


def _fake_binary_cross_entropy_backward(grad: Tensor, logits: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(logits)


def _fake_linear_cross_entropy(
    inputs: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    dtype: torch.dtype,
    chunk_size: int,
    wanted: list[bool],
    *args: Any,
) -> tuple[Tensor, ...]:
    acc = compute_dtype(dtype)
    none = (0,)
    return (
        inputs.new_empty((), dtype=acc),
        inputs.new_empty(inputs.shape if wanted[0] else none, dtype=dtype),
        inputs.new_empty(linear_weight.shape if wanted[1] else none, dtype=acc),
        inputs.new_empty(linear_weight.shape[:1] if wanted[2] else none, dtype=acc),
    )


_FAKES: dict[str, Any] = {
    "mix": _fake_mix,
    "mix_": _fake_nothing,
    "mix_other": _fake_mix_other,
    "mix_other_": _fake_nothing,
    "sum_rows_": _fake_nothing,
    "cutmix_": _fake_nothing,
    "mix_targets": _fake_mix_targets,
    "mix_batch_": _fake_mix_batch,
    "sample_mix": _fake_sample_mix,
    "cross_entropy": _fake_cross_entropy,
    "cross_entropy_backward": _fake_cross_entropy_backward,
    "cross_entropy_backward_": _fake_nothing,
    "cross_entropy_rescale_": _fake_nothing,
    "cross_entropy_": _fake_cross_entropy_inplace,
    "cross_entropy_part": _fake_cross_entropy_part,
    "linear_cross_entropy": _fake_linear_cross_entropy,
    "binary_cross_entropy": _fake_binary_cross_entropy,
    "binary_cross_entropy_backward": _fake_binary_cross_entropy_backward,
    "binary_cross_entropy_backward_": _fake_nothing,
    "binary_cross_entropy_rescale_": _fake_nothing,
}


def define(namespace: str) -> torch.library.Library:
    """Defines torch.ops.<namespace> and registers the fake kernels that torch.compile needs."""
    library = torch.library.Library(namespace, "DEF")
    _libraries.append(library)
    for schema in (*SCHEMAS, LINEAR):
        library.define(schema)
    composed = partial(linear_cross_entropy, partial(kernel, namespace))
    library.impl("linear_cross_entropy", composed, "CompositeExplicitAutograd")
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"{namespace}::{name}", fake)
    return library


LOAD_ERROR: str | None = None
try:
    importlib.import_module("mmix_fast._C")
    define("mmix_fast").define("cpu_isa() -> str")
except (ImportError, RuntimeError) as error:  # dispatch.py reports it at the first use
    LOAD_ERROR = str(error)
