"""A small batch for every op, as several files of tests use it."""

import torch

PERM, Y = torch.tensor([1, 2, 3, 0]), torch.tensor([0, 1, 1, 2])
X, IMAGES = torch.randn(4, 3), torch.randn(4, 2, 5, 6)


def same(got, want):
    """Asserts that two results, or two tuples of results, are equal in dtype, shape and values."""
    for g, w in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, want)), strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape and torch.equal(g, w)
