"""CutMix in place under a permutation."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import validation as v
from ..arithmetic import as_lam, compute_dtype
from ..dispatch import select
from ..tracing import beyond_kernels, readable
from .values import checks_here

# λ = 0 for every paste on the CPU: creating it takes as long as pasting a few images.
_PASTE = torch.zeros((), dtype=torch.float32, device="cpu")
BYTES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def cutmix_(
    x: Tensor, perm: Tensor, box: Tensor | Sequence[int], *, lam: float | Tensor = 0.0
) -> tuple[Tensor, Tensor]:
    """CutMix: paste the partner's box, in place: ``x[i][..., box] = x[perm[i]][..., box]``.

    With ``lam`` the box is mixed instead of pasted: ``lam*x[i] + (1-lam)*x[perm[i]]``. With one box
    per sample, one call can apply CutMix, Mixup (the box is the whole image) and no change (an
    empty box) to different samples.

    Args:
        x: ``(B, ..., H, W)``, any strides; overwritten. float16, bfloat16, float32 or float64;
            with the default lam, any dtype of 1, 2, 4 or 8 bytes per element, so the same perm and
            box also work for uint8 images, masks and label maps.
        perm: int64 ``(B,)``, a permutation of 0..B-1 on x's device.
        box: (top, bottom, left, right), ``0 <= top <= bottom <= H``, ``0 <= left <= right <= W``,
            ends exclusive: four ints (NumPy's too), or int64 ``(4,)`` or ``(B, 4)`` on x's device.
        lam: the sample's own weight inside the box, as in :func:`mmix_fast.mix`; 0 copies the
            partner's box bit for bit.

    Returns:
        x, and λ corrected by the area, ``1 - (1-lam) * (bottom-top) * (right-left) / (H*W)``, which
        is the weight of the sample's own label. float32 (float64 for float64 x), 0-dim, or ``(B,)``
        where box or lam is per sample. If x needs a gradient, plain PyTorch runs the op.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`mmix_fast.mix_`; ValueError for a bad box on
            the CPU (on other devices a box past the edge is clipped to the image, and where a row
            would become NaN, it stays as it is in a dtype that can only be pasted).

    Equivalent PyTorch: ``x[..., top:bottom, left:right] = x[perm][..., top:bottom, left:right]``.
    Source: Yun et al., CutMix, ICCV 2019, equation 1 and section 3.1.

    >>> x, lam = cutmix_(images, perm, (8, 24, 0, 16))
    >>> loss = mixed_cross_entropy(model(x), y, perm, lam)
    """
    v.check_tensor(x)
    if x.ndim < 3:
        raise ValueError(f"x must have shape (B, ..., H, W), got {v.describe(x)}")
    v.check_perm(perm, x.shape[0], x.device)
    lam = v.check_lam(lam, x.shape[0], x.device)
    as_bytes = x.dtype not in v.FLOATS
    if as_bytes:
        _check_paste(x, lam)
    v.check_inplace(x, lam)
    plain = readable(x)  # no tracer or mode: constants may be made without torch ops
    edges, box = _as_box(box, x, plain)
    beyond = beyond_kernels(x=x)
    # As integers: not every dtype can be indexed, and kernels know no others. Not where autograd or
    # torch.func needs x.
    written = x.view(BYTES[x.element_size()]) if as_bytes and not beyond else x
    backend = select(x, beyond)
    if checks_here(backend, x, perm, box):
        v.check_permutation_values(perm)
        _check_box_values(box, x)
    acc = compute_dtype(x.dtype)
    pastes = plain and x.is_cpu and not isinstance(lam, Tensor) and lam == 0
    weight = _PASTE if pastes else as_lam(lam, acc, x.device)
    backend.ops.cutmix_(written, perm, box, weight)
    whole = max(x.shape[-2] * x.shape[-1], 1)
    if edges is not None:
        top, bottom, left, right = edges
        share = (bottom - top) * (right - left) / whole
        if isinstance(lam, Tensor):
            return x, 1 - (1 - weight) * share
        return x, as_lam(_corrected(lam, share, acc), acc, x.device)
    area = (box[..., 1] - box[..., 0]) * (box[..., 3] - box[..., 2])
    return x, 1 - (1 - weight) * (area.to(acc) / whole)


def _corrected(lam: float, share: float, acc: torch.dtype) -> float:
    """1 - (1-lam) * share in Python, which saves five ops; same bits as with tensors of ``acc``."""
    if acc == torch.float64:
        return 1 - (1 - lam) * share
    rounded = _float32  # one float64 op on float32 numbers, then rounded, is exactly the float32 op
    return 1 - rounded(rounded(1 - rounded(lam)) * rounded(share))


def _float32(value: float) -> float:
    return ctypes.c_float(value).value


def _check_paste(x: Tensor, lam: float | Tensor) -> None:
    if isinstance(lam, Tensor) or lam != 0:  # a tensor's value is not read
        raise TypeError(
            "x must be float16, bfloat16, float32 or float64 for a lam other than the number 0, "
            f"got {v.describe(x)}"
        )
    if x.element_size() not in BYTES:
        raise TypeError(f"x must have 1, 2, 4 or 8 bytes an element, got {v.describe(x)}")


def _as_box(box: Any, x: Tensor, plain: bool) -> tuple[list[int] | None, Tensor]:
    """(four ints or None, the box as a tensor). None for a tensor, or if a graph is made."""
    if isinstance(box, Tensor):
        if box.dtype != torch.int64:
            raise TypeError(f"{_expected(x)}, got {v.describe(box)}")
        if box.shape not in ((4,), (x.shape[0], 4)):
            raise ValueError(f"{_expected(x)}, got {v.describe(box)}")
        if box.device != x.device:
            raise ValueError(f"box must be on {x.device}, got {box.device}")
        return None, box
    if type(box) is not tuple:
        row = getattr(box, "ndim", 0) == 1  # a NumPy array
        if not (row or isinstance(box, Sequence)) or isinstance(box, str):
            raise TypeError(f"{_expected(x)}, got {v.describe(box)}")
    if len(box) != 4:
        raise ValueError(f"{_expected(x)}, got {v.describe(box)}")
    edges = [v.check_index("each edge of box", edge) for edge in box]
    # In a torch.compile graph torch.tensor would specialize on the numbers. A CUDA graph cannot
    # capture a copy from pageable memory.
    if torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        one = torch.ones((), dtype=torch.int64, device=x.device)
        return None, torch.stack([one * edge for edge in edges])
    # torch.tensor takes 3 us longer, but fake tensors and modes can intercept it.
    if plain:
        made = torch.frombuffer(array("q", edges), dtype=torch.int64)
    else:
        made = torch.tensor(edges, device="cpu")
    return edges, made if x.is_cpu else made.to(x.device, non_blocking=True)


def _expected(x: Tensor) -> str:  # for errors only: formatting a shape specializes the graph
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
