"""Mixing, out of place and in place."""

from __future__ import annotations

from torch import Tensor

from .. import validation as v
from ..dispatch import Backend, select
from ..tracing import beyond_kernels
from .values import checks_here


def mix(
    x: Tensor,
    perm: Tensor | None,
    lam: float | Tensor,
    *,
    other: Tensor | None = None,
    dim: int = 0,
) -> Tensor:
    """Mix a batch with a shuffled copy of itself: ``y[i] = lam*x[i] + (1-lam)*x[perm[i]]``.

    With ``other``, a second batch, the partners are its samples: ``other[perm[i]]``, or
    ``other[i]`` where perm is None. Labelled with unlabelled samples (MixMatch, UniMatch), two
    domains, a second stream.

    λ is the weight of the sample itself (in composer and kornia: of the partner). A term whose
    coefficient is exactly 0 is left out, so its inf or NaN does not leak.

    Args:
        x: float16, bfloat16, float32 or float64, any shape with a batch dimension of size B, any
            strides. Arithmetic is float32 (float64 for float64), rounded once.
        perm: int64 ``(B,)``, a permutation of 0..B-1 on x's device. With other: any indices of its
            samples, repeats too, or None.
        lam: float, 0-dim tensor, or ``(B,)`` tensor of per-sample λ; usually in [0, 1]; not
            enforced. Trailing dimensions of size 1 are allowed, whatever ``dim`` is: ``(1,)`` and
            ``(1, 1)`` are one λ for all samples, ``(B, 1, 1, 1)`` one λ per sample (also at B = 1).
            A NumPy scalar or 0-dim array counts as a float. The gradient has lam's own shape and
            dtype.
        other: of x's dtype, device and shape, except its own batch size. A copy of it is made
            only where its dimensions are not in the order of x's in memory.
        dim: the batch dimension.

    Returns:
        A new tensor with the shape, dtype and memory format of x. Differentiable in x, other and
        lam. The gradients of repeated samples of other are added in the order of the batch, in the
        dtype of the arithmetic, and rounded once.

    Raises:
        TypeError: wrong type or dtype.
        ValueError: wrong shape or device, or perm is not a permutation.
        IndexError: dim out of range; with other, an index out of range.

    Equivalent PyTorch: ``lam * x + (1 - lam) * x[perm]``.
    Source: Verma et al., Manifold Mixup, ICML 2019, equation 1; for other: Berthelot et al.,
    MixMatch, NeurIPS 2019, section 3.3.

    >>> mix(torch.tensor([[0.0], [1.0]]), torch.tensor([1, 0]), 0.75)
    tensor([[0.2500],
            [0.7500]])

    MixMatch mixes labelled samples with any of both batches, and UniMatch two unlabelled batches:

    >>> both = torch.cat([labelled, unlabelled])
    >>> labelled = mix(labelled, torch.randperm(len(both))[:len(labelled)], lam, other=both)
    >>> images = mix(images_1, None, lam, other=images_2)
    """
    if other is not None:
        dim, lam, backend = _check_other(x, perm, lam, other, dim)
        return backend.ops.mix(x, perm, lam, other=other, dim=dim)
    dim, lam = check_mix(x, perm, lam, dim)
    backend = select(x)
    if perm is not None and checks_here(backend, x, perm):
        v.check_permutation_values(perm)
    return backend.ops.mix(x, perm, lam, dim=dim)


def mix_(
    x: Tensor,
    perm: Tensor | None,
    lam: float | Tensor,
    *,
    other: Tensor | None = None,
    dim: int = 0,
) -> Tensor:
    """In-place :func:`mix`: overwrites and returns x; allocates only index data.

    ``other`` is not written. It must not share memory with x (RuntimeError). Two parts of one
    tensor do not, if one ends before the other begins or both have the same strides:
    ``t[:4]`` and ``t[4:]``, ``t[::2]`` and ``t[1::2]``. Other views that interleave raise too.

    x's version counter is bumped, so a layer that saves its output for backward (ReLU) raises in
    backward: use :func:`mix` there.

    Args:
        x, perm, lam, other, dim: as in :func:`mix`.

    Raises:
        TypeError, ValueError, IndexError: as :func:`mix`.
        RuntimeError: before anything is written, if x is a leaf that requires grad or a view of
            one, if x overlaps itself in memory (``expand``) or other, or if lam requires grad.

    Equivalent PyTorch: ``x.copy_(lam * x + (1 - lam) * x[perm])``.
    Source: Verma et al., Manifold Mixup, ICML 2019, equation 1.

    >>> mix_(torch.tensor([[0.0], [1.0]]), torch.tensor([1, 0]), 0.75)
    tensor([[0.2500],
            [0.7500]])
    """
    if other is not None:
        dim, lam, backend = _check_other(x, perm, lam, other, dim, inplace=True)
        return backend.ops.mix_(x, perm, lam, other=other, dim=dim)
    dim, lam = check_mix(x, perm, lam, dim)
    v.check_inplace(x, lam)
    backend = select(x)
    if perm is not None and checks_here(backend, x, perm):
        v.check_permutation_values(perm)
    return backend.ops.mix_(x, perm, lam, dim=dim)


def _check_other(
    x: Tensor,
    perm: Tensor | None,
    lam: float | Tensor,
    other: Tensor,
    dim: int,
    inplace: bool = False,
) -> tuple[int, float | Tensor, Backend]:
    v.check_x(x)
    dim = v.check_dim(x, dim)
    v.check_other(other, x, perm, dim)
    lam = v.check_lam(lam, x.shape[dim], x.device)
    if inplace:
        v.check_inplace(x, lam, other)
    backend = select(x, beyond_kernels())
    if perm is not None and checks_here(backend, x, perm):
        v.check_index_values(perm, other.shape[dim])
    return dim, lam, backend


def check_mix(
    x: Tensor, perm: Tensor | None, lam: float | Tensor, dim: int
) -> tuple[int, float | Tensor]:
    v.check_x(x)
    dim = v.check_dim(x, dim)
    v.check_perm(perm, x.shape[dim], x.device)
    return dim, v.check_lam(lam, x.shape[dim], x.device)
