"""The emulated ops, and what a mix must give bit for bit."""

import torch

from tests.cuda_emulation.emulation import NAMESPACE

OPS = getattr(torch.ops, NAMESPACE)
H100 = (132, 227 * 1024)


def truth(x, index, own, other, second=None):
    """own[i]*x[i] + other[i]*second[index[i]], each operation rounded; NaN where index is negative.

    ``second`` is x by default. A term with coefficient 0 is left out, whatever the other is.
    """
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = [-1] + [1] * (x.ndim - 1)
    own, other = own.to(acc).reshape(shape), other.to(acc).reshape(shape)
    a, b = x.to(acc), (x if second is None else second)[index.clamp(0)].to(acc)
    alone = torch.where(own != 0, own * a, torch.where(other != 0, other * b, 0))
    out = torch.where((own == 0) | (other == 0), alone, own * a + other * b)
    return out.masked_fill((index < 0).reshape(shape), float("nan")).to(x.dtype)


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
