"""A linear head and its loss in chunks of rows, so that no more logits exist at a time.

Each chunk's logits are made, their gradient is written over them, and the products of the backward
are taken at once. This is torch's matmul and the loss ops of a backend: the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arithmetic import compute_dtype
from .mean_scales import mean_scales
from .reference.terms import inside
from .tracing import without_autocast

# Takes the logits of some rows, their target, perm, target_b and lam, and the factors of the mean.
# Gives the loss. If asked for it, overwrites the logits with the gradient for an upstream of 1.
Step = Callable[[Tensor, tuple[Any, ...], Tensor | None, bool], Tensor]


class HeadGradients(NamedTuple):
    """Loss, and gradients for an upstream gradient of ``1 / factor``.

    Empty tensors where no gradient was asked for. Of the input in the logits' dtype, of weight and
    bias in float32 (float64).
    """

    loss: Tensor
    input: Tensor
    weight: Tensor
    bias: Tensor


# Rows that a chunk has at least, so that the matmul is efficient: on a GPU, tiles of this many rows
# and columns are given to the multiprocessors, all of which should have one; on a CPU, fewer rows
# than twice as many made each row slower.
_TILE = 128


def default_chunk_size(rows: int, features: int, classes: int, device: torch.device) -> int:
    """The number of rows whose logits take about the memory of the input, in whole tiles.

    More if the matmul needs more to keep the device busy.
    """
    least = 2 * _TILE
    if device.type == "cuda":
        tiles = -(-classes // _TILE)
        units = torch.cuda.get_device_properties(device).multi_processor_count
        least = -(-units // tiles) * _TILE
    wanted = max(least, -(-rows * features // max(classes, 1)))
    return -(-wanted // _TILE) * _TILE


def run_chunks(
    step: Step,
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    chunk_size: int,
    wanted: list[bool],
    targets: ChunkTargets,
    scales: Tensor | None,
    factor: int,
) -> HeadGradients:
    """``dtype``: of the logits. ``wanted``: gradients of input, weight and bias.

    ``scales``: None, or the factors of the mean. ``factor``: see factor_of.
    """
    acc = compute_dtype(dtype)
    rows, classes = inputs.shape[0], weight.shape[0]
    scales = None if scales is None else scales * factor
    chunks = -(-rows // chunk_size)
    size = -(-rows // chunks) if chunks else 0  # all of about the same size
    x, w, b = inputs.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    buffer = x.new_empty(size, classes)
    loss = x.new_zeros((), dtype=torch.float64)
    of_input = torch.empty_like(x) if wanted[0] else x.new_empty(0)
    of_weight = w.new_zeros(w.shape if wanted[1] and not chunks else 0, dtype=acc)
    of_bias = w.new_zeros(classes if wanted[2] else 0, dtype=acc)
    with without_autocast(inputs.device):  # dtype says what it asked for
        for begin in range(0, rows, max(size, 1)):
            end = min(rows, begin + size)
            z, part = buffer[: end - begin], x[begin:end]
            if b is None:
                torch.mm(part, w.t(), out=z)
            else:
                torch.addmm(b, part, w.t(), out=z)
            loss += step(z, targets.of(begin, end), scales, any(wanted))
            if wanted[0]:
                torch.mm(z, w, out=of_input[begin:end])
            if wanted[1]:
                of_weight = _add_product(of_weight if begin else None, z.t(), part, acc)
            if wanted[2]:
                of_bias += z.sum(0, dtype=acc)
    if scales is not None and not rows:
        loss += scales[3]  # a mean over nothing
    return HeadGradients(loss.to(acc) / factor, of_input, of_weight, of_bias)


def _add_product(total: Tensor | None, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``total + a @ b``, computed in ``dtype`` and written to total; None stands for 0."""
    to: dict[str, Any] = {}
    if a.dtype != dtype:
        # cuBLAS has a product of 16-bit matrices that is float32; elsewhere they are widened first:
        # a 16-bit product for each chunk would be rounded once for each.
        if a.is_cuda and torch.version.hip is None:
            to = {"out_dtype": dtype}
        else:
            a, b = a.to(dtype), b.to(dtype)
    if total is None:
        return torch.mm(a, b, **to)
    return torch.addmm(total, a, b, out=total, **to)


def linear_cross_entropy(
    kernel: Callable[[str], Any],
    inputs: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    dtype: torch.dtype,
    chunk_size: int,
    wanted: list[bool],
    target: Tensor,
    perm: Tensor | None,
    target_b: Tensor | None,
    lam: Tensor,
    weight: Tensor | None,
    *options: Any,
) -> tuple[Tensor, ...]:
    """The op of the same name in schemas.py. ``kernel``: finds an op of the backend.

    ``options``: from ignore_index on, as in the schema.
    """
    rows, features = inputs.shape
    classes = linear_weight.shape[0]
    chunk_size = chunk_size or default_chunk_size(rows, features, classes, inputs.device)
    targets = ChunkTargets(target, perm, target_b, lam)
    scales = targets.scales(weight, options, classes)

    def step(z: Tensor, own: tuple[Any, ...], scales: Tensor | None, gradient: bool) -> Tensor:
        arguments = *own, weight, scales, *options, 0, 0
        if gradient:
            return kernel("cross_entropy_")(z, *arguments)
        return kernel("cross_entropy")(z, *arguments, None)[0]

    head = inputs, linear_weight, linear_bias
    factor = factor_of(dtype, options[1], rows)
    return run_chunks(step, *head, dtype, chunk_size, wanted, targets, scales, factor)


class ChunkTargets:
    """The targets of a batch, of which each chunk takes some rows."""

    def __init__(
        self, target: Tensor, perm: Tensor | None, target_b: Tensor | None, lam: Tensor
    ) -> None:
        self.target, self.target_b = target, target_b
        self.lam = self.given_lam = lam
        self.index = None
        if perm is None:
            return
        self.index, bad = inside(perm, perm.shape[0])
        # Where values are not checked, a row whose index is out of range becomes NaN.
        self.lam = torch.where(bad, float("nan"), lam)
        if not target.is_floating_point():
            self.target_b, self.index = target.index_select(0, self.index), None

    def scales(
        self, weight: Tensor | None, options: tuple[Any, ...], classes: int
    ) -> Tensor | None:
        ignore_index, reduction = options[:2]
        if reduction != "mean":
            return None
        partner = self.target if self.target_b is None else self.target_b
        return mean_scales(self.target, partner, self.given_lam, weight, ignore_index, classes)

    def of(self, begin: int, end: int) -> tuple[Tensor, None, Tensor, Tensor]:
        """target, perm, target_b and lam of these rows, as the loss ops take them."""
        part = slice(begin, end)
        if self.index is None:
            assert self.target_b is not None
            partner = self.target_b[part]
        else:  # probabilities: only a chunk of them is copied at a time
            partner = self.target.index_select(0, self.index[part])
        return self.target[part], None, partner, self.lam[part] if self.lam.ndim else self.lam


def factor_of(dtype: torch.dtype, reduction: str, rows: int) -> int:
    """By what the gradients are multiplied in the chunks.

    The gradient of a mean over many rows is so small that float16 would lose digits, and a gradient
    scaler multiplies it only in the backward, when the products are done.
    """
    return max(rows, 1) if reduction == "mean" and dtype == torch.float16 else 1
