"""Targets of binary cross-entropies, and their losses by F.binary_cross_entropy_with_logits."""

import torch
import torch.nn.functional as F

from tests.support.cases import TOLERANCE

KINDS = ["labels", "bool", "uint8", "probabilities"]


def make_target(kind, shape, dtype=torch.float32):
    if kind == "labels":
        return torch.randint(0, shape[1], shape[:1] + shape[2:])
    hot = torch.rand(shape) < 0.3
    if kind == "bool":
        return hot
    return hot.to(torch.uint8) if kind == "uint8" else torch.rand(shape).to(dtype)


def smoothed(target, shape, eps):
    """q of SPEC section 2 in float64, as timm smooths labels and multi-hot targets."""
    if target.dtype == torch.int64:
        q = F.one_hot(target, shape[1]).movedim(-1, 1).double()
        return q * (1 - eps) + eps / shape[1]
    return target.double() * (1 - eps) + eps / 2


def expected(z, own, other, lam, weight=None, pos_weight=None, reduction="mean", threshold=None):
    """The loss of float64 logits against own and other, the smoothed targets of the two sides."""
    per_class = [-1 if d == 0 else 1 for d in range(z.ndim - 1)]
    lam = torch.as_tensor(lam, dtype=torch.float64)
    if lam.ndim:
        lam = lam.reshape(-1, *[1] * (z.ndim - 1))
    t = lam * own + (1 - lam) * other
    if threshold is not None:
        t = (t > threshold).double()
    options = {
        name: None if given is None else given.double().reshape(per_class).expand(z.shape[1:])
        for name, given in (("weight", weight), ("pos_weight", pos_weight))
    }
    by_sum = "sum" if reduction == "batchmean" else reduction
    loss = F.binary_cross_entropy_with_logits(z, t, reduction=by_sum, **options)
    return loss / len(z) if reduction == "batchmean" else loss


def check(got, z, want, z64, dtype):
    """Values, and gradients for an upstream gradient of 1 and for another one."""
    tol = TOLERANCE[got.dtype]
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.double(), want, rtol=tol, atol=tol)
    up = torch.rand_like(want)
    (want_grad,) = torch.autograd.grad(want, z64, up)
    (grad,) = torch.autograd.grad(got, z, up.to(got.dtype))
    assert grad.dtype == dtype and grad.shape == z.shape
    # Relative to the largest entry, since the entries of a mean are small: in float16 subnormal.
    info = torch.finfo(dtype)
    tol = TOLERANCE[dtype]
    atol = tol * want_grad.abs().max().item() + info.smallest_normal * info.eps
    torch.testing.assert_close(grad.double(), want_grad, rtol=tol, atol=atol)
