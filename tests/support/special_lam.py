"""Values of λ at which the code branches, and the expected results of mixing with them."""

import torch
from hypothesis import strategies as st

NAN, INF = float("nan"), float("inf")
# For λ = 2**-60, 1 - λ rounds to 1 in float32 and in float64.
LAMS = (0.0, 1.0, -0.0, 2.0**-60, 0.3, 0.5, -0.5, 1.75, NAN)
FINITE_LAMS = LAMS[:-1]


def draw_lam(data, batch, values=LAMS):
    """A λ tensor: 0-dim, or one value for each sample."""
    one = st.sampled_from(values)
    if data.draw(st.booleans(), "per sample"):
        return torch.tensor(data.draw(st.lists(one, min_size=batch, max_size=batch), "lam"))
    return torch.tensor(data.draw(one, "lam"))


def combined(own, a, other, b):
    """own*a + other*b, each operation rounded; a term with coefficient 0 is left out."""
    left, right = own * a, other * b
    alone = torch.where(own != 0, left, torch.where(other != 0, right, 0))
    return torch.where((own == 0) | (other == 0), alone, left + right)


def acc_of(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def along(v, like, dim):
    return v.reshape([-1 if d == dim else 1 for d in range(like.ndim)])


def mixed(x, perm, lam, dim=0):
    acc = acc_of(x.dtype)
    own = along(lam.to(acc).expand(len(perm)), x, dim)
    wide = x.to(acc)
    return combined(own, wide, 1 - own, wide.index_select(dim, perm)).to(x.dtype)


def transposed(g, perm, lam, dim=0):
    """The gradient to x of a mix, for the upstream gradient g."""
    acc, inverse = acc_of(g.dtype), perm.argsort()
    own = lam.to(acc).expand(len(perm))
    other, own = along((1 - own)[inverse], g, dim), along(own, g, dim)
    wide = g.to(acc)
    return combined(own, wide, other, wide.index_select(dim, inverse)).to(g.dtype)


def assert_same(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
