"""A linear head, and its mixed loss with all logits at once and in chunks."""

import torch
import torch.nn.functional as F

import mmix_fast as m

N, D, C = 13, 6, 17


def head(dtype=torch.float64, n=N, bias=True):
    tensors = torch.randn(n, D), torch.randn(C, D), torch.randn(C)
    return [t.to(dtype).requires_grad_() for t in tensors[: 2 + bias]]


def arguments(kind, dtype=torch.float64, n=N):
    """target, perm, lam and options."""
    y, other = torch.randint(0, C, (n,)), torch.randint(0, C, (n,))
    y[2], other[5] = -100, -100
    perm, lam = torch.randperm(n), torch.tensor(0.3, dtype=dtype)
    per_sample = torch.rand(n, dtype=dtype)
    per_sample[:3] = torch.tensor([0.0, 1.0, 1.5])
    soft = torch.rand(n, C, dtype=dtype)
    every = {
        "label_smoothing": 0.1,
        "z_loss": 0.1,
        "softcap": 3.0,
        "weight": torch.rand(C).to(dtype),
    }
    return {
        "labels": (y, perm, lam, {}),
        "lam 0": (y, perm, 0.0, every),
        "lam 1": (y, perm, 1.0, every),
        "per sample": (y, perm, per_sample, every),
        "partners": (y, None, lam, {"target_b": other, **every}),  # two divisors of a mean
        "probabilities": (soft, perm, lam, every),
        "pairs of probabilities": (soft, None, per_sample, {"target_b": soft.flip(0)}),
    }[kind]


KINDS = [
    "labels",
    "lam 0",
    "lam 1",
    "per sample",
    "partners",
    "probabilities",
    "pairs of probabilities",
]


def unchunked(tensors, target, perm, lam, **options):
    x, w, *b = tensors
    with m.use_backend("reference"):
        return m.mixed_cross_entropy(F.linear(x, w, *b), target, perm, lam, **options)


def chunked(tensors, target, perm, lam, **options):
    x, w, *b = tensors
    return m.mixed_linear_cross_entropy(
        x, w, target, perm, lam, linear_bias=b[0] if b else None, **options
    )
