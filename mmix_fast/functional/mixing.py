"""Mixing, out of place and in place."""

from __future__ import annotations

from torch import Tensor

from .. import validation as v
from ..dispatch import select
from .values import checks_here


def mix(x: Tensor, perm: Tensor, lam: float | Tensor, *, dim: int = 0) -> Tensor:
    """Mix a batch with a shuffled copy of itself: ``y[i] = lam*x[i] + (1-lam)*x[perm[i]]``.

    λ is the weight of the sample itself (in composer and kornia: of the partner). A term whose
    coefficient is exactly 0 is left out, so its inf or NaN does not leak.

    Args:
        x: float16, bfloat16, float32 or float64, any shape with a batch dimension of size B, any
            strides. Arithmetic is float32 (float64 for float64), rounded once.
        perm: int64 ``(B,)``, a permutation of 0..B-1 on x's device.
        lam: float, 0-dim tensor, or ``(B,)`` tensor of per-sample λ; usually in [0, 1]; not
            enforced. Trailing dimensions of size 1 are allowed, whatever ``dim`` is: ``(1,)`` and
            ``(1, 1)`` are one λ for all samples, ``(B, 1, 1, 1)`` one λ per sample (also at B = 1).
            A NumPy scalar or 0-dim array counts as a float. The gradient has lam's own shape and
            dtype.
        dim: the batch dimension.

    Returns:
        A new tensor with the shape, dtype and memory format of x. Differentiable in x and lam.

    Raises:
        TypeError: wrong type or dtype.
        ValueError: wrong shape or device, or perm is not a permutation.
        IndexError: dim out of range.

    Equivalent PyTorch: ``lam * x + (1 - lam) * x[perm]``.
    Source: Verma et al., Manifold Mixup, ICML 2019, equation 1.

    >>> mix(torch.tensor([[0.0], [1.0]]), torch.tensor([1, 0]), 0.75)
    tensor([[0.2500],
            [0.7500]])
    """
    dim, lam = check_mix(x, perm, lam, dim)
    backend = select(x)
    if checks_here(backend, x, perm):
        v.check_permutation_values(perm)
    return backend.ops.mix(x, perm, lam, dim=dim)


def mix_(x: Tensor, perm: Tensor, lam: float | Tensor, *, dim: int = 0) -> Tensor:
    """In-place :func:`mix`: overwrites and returns x; allocates only index data.

    Raises as :func:`mix`. Also raises RuntimeError, before anything is written, if x is a leaf that
    requires grad or a view of one, if x overlaps itself in memory (``expand``), or if lam requires
    grad. x's version counter is bumped, so a layer that saves its output for backward (ReLU) raises
    in backward: use :func:`mix` there.

    Equivalent PyTorch: ``x.copy_(lam * x + (1 - lam) * x[perm])``.
    Source: Verma et al., Manifold Mixup, ICML 2019, equation 1.

    >>> mix_(torch.tensor([[0.0], [1.0]]), torch.tensor([1, 0]), 0.75)
    tensor([[0.2500],
            [0.7500]])
    """
    dim, lam = check_mix(x, perm, lam, dim)
    v.check_inplace(x, lam)
    backend = select(x)
    if checks_here(backend, x, perm):
        v.check_permutation_values(perm)
    return backend.ops.mix_(x, perm, lam, dim=dim)


def check_mix(x: Tensor, perm: Tensor, lam: float | Tensor, dim: int) -> tuple[int, float | Tensor]:
    v.check_x(x)
    dim = v.check_dim(x, dim)
    v.check_perm(perm, x.shape[dim], x.device)
    return dim, v.check_lam(lam, x.shape[dim], x.device)
