"""CutMix in place under a permutation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from . import validation as v
from .dispatch import select
from .ops import kernel
from .tracing import beyond_kernels, explained_writes, readable


def cutmix_(
    x: Tensor, perm: Tensor, box: Tensor | Sequence[int], *, lam: float | Tensor = 0.0
) -> tuple[Tensor, Tensor]:
    """CutMix: paste the partner's box, in place: ``x[i][..., box] = x[perm[i]][..., box]``.

    With ``lam`` the box is not pasted but mixed, ``lam*x[i] + (1-lam)*x[perm[i]]``: with a box for
    each sample one call serves a batch that has CutMix, Mixup (the whole image as box) and
    untouched samples (an empty box).

    Args:
        x: ``(B, ..., H, W)``, float16, bfloat16, float32 or float64, any strides; overwritten.
        perm: int64 ``(B,)``, a permutation of 0..B-1 on x's device.
        box: (top, bottom, left, right), ``0 <= top <= bottom <= H``, ``0 <= left <= right <= W``,
            the ends not included: four ints, or int64 ``(4,)`` or ``(B, 4)`` on x's device.
        lam: the sample's own weight inside the box: as in :func:`mmix_fast.mix`; 0 pastes.

    Returns:
        x, and λ corrected by the area, ``1 - (1-lam) * (bottom-top) * (right-left) / (H*W)``: the
        weight of the sample's own label. float32 (float64 for float64 x), 0-dim, or ``(B,)`` where
        box or lam is per sample.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`mmix_fast.mix_`; ValueError for a bad box, on
        the CPU (elsewhere a box past the edge is cut at the edge).

    Equivalent PyTorch: ``x[..., top:bottom, left:right] = x[perm][..., top:bottom, left:right]``.
    Source: Yun et al., CutMix, ICCV 2019, equation 1 and section 3.1.

    >>> x, lam = cutmix_(images, perm, (8, 24, 0, 16))
    >>> loss = mixed_cross_entropy(model(x), y, perm, lam)
    """
    v.check_x(x)
    if x.ndim < 3:
        raise ValueError(f"x must have shape (B, ..., H, W), got {v.what(x)}")
    v.check_perm(perm, x.shape[0], x.device)
    v.check_lam(lam, x.shape[0], x.device)
    v.check_inplace(x, lam)
    box = _as_box(box, x)
    acc = v.compute_dtype(x.dtype)
    lam = v.as_lam(lam, acc, x.device)
    backend = select(x, beyond_kernels(x=x))
    if not backend.checks_values and v.must_check_values(x.device) and readable(perm, box):
        v.check_permutation_values(perm)
        _check_box_values(box, x)
    if backend.namespace:
        kernel(backend.namespace, "cutmix_")(x, perm.contiguous(), box.contiguous(), lam)
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version(x)
    else:
        with explained_writes("cutmix_"):
            reference.cutmix_(x, perm, box, lam)
    area = (box[..., 1] - box[..., 0]) * (box[..., 3] - box[..., 2])
    share = area.to(acc) / max(x.shape[-2] * x.shape[-1], 1)
    return x, 1 - (1 - lam) * share


def _as_box(box: Any, x: Tensor) -> Tensor:
    if isinstance(box, Tensor):
        if box.dtype != torch.int64:
            raise TypeError(f"{_expected(x)}, got {v.what(box)}")
        if box.shape not in ((4,), (x.shape[0], 4)):
            raise ValueError(f"{_expected(x)}, got {v.what(box)}")
        if box.device != x.device:
            raise ValueError(f"box must be on {x.device}, got {box.device}")
        return box
    if not isinstance(box, Sequence) or isinstance(box, str):
        raise TypeError(f"{_expected(x)}, got {v.what(box)}")
    for edge in box:
        v.check_index("box", edge)
    if len(box) != 4:
        raise ValueError(f"{_expected(x)}, got {v.what(box)}")
    if torch.compiler.is_compiling():  # torch.tensor would specialise the graph on the numbers
        return torch.stack([torch.ones((), dtype=torch.int64, device=x.device) * e for e in box])
    return torch.tensor(box).to(x.device, non_blocking=True)


def _expected(x: Tensor) -> str:  # made for an error only: a shape in a text is fixed in its graph
    return f"box must be 4 ints, or int64 of shape (4,) or ({x.shape[0]}, 4)"


def _check_box_values(box: Tensor, x: Tensor) -> None:
    height, width = x.shape[-2:]
    top, bottom, left, right = box.reshape(-1, 4).unbind(1)
    fits = (top >= 0) & (top <= bottom) & (bottom <= height)
    fits &= (left >= 0) & (left <= right) & (right <= width)
    if not bool(fits.all()):
        first = tuple(box.reshape(-1, 4)[~fits][0].tolist())
        raise ValueError(
            f"box must hold 0 <= top <= bottom <= {height} and 0 <= left <= right <= {width}, "
            f"got {first}"
        )
