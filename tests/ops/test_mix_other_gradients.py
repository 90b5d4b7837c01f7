"""Gradients of mix and mix_ with a second batch: to both batches and to lam.

``other`` gets, for each of its samples, the sum over the rows that have it as their partner.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mmix_fast as m
from tests.support.cases import DTYPES
from tests.support.properties import property_test
from tests.support.special_lam import (
    FINITE_LAMS,
    INF,
    LAMS,
    NAN,
    acc_of,
    assert_same,
    draw_lam,
)

RUNS_ON_GPU = True
OPS = {
    "mix": lambda x, perm, lam, other, dim=0: m.mix(x, perm, lam, other=other, dim=dim),
    "mix_": lambda x, perm, lam, other, dim=0: m.mix_(x * 1, perm, lam, other=other, dim=dim),
}


def transposed(g, samples, perm, lam, dim=0):
    """(gradient to x, gradient to other): each term rounded, added in order, rounded once."""
    acc, rows = acc_of(g.dtype), g.shape[dim]
    own = torch.as_tensor(lam).to(acc).expand(rows)
    wide = g.to(acc).movedim(dim, 0)

    def term(weight, row):
        return weight * wide[row] if weight != 0 else None

    def total(terms):
        out = None
        for t in terms:
            if t is not None:
                out = t if out is None else out + t
        return torch.zeros_like(wide[0]) if out is None else out

    perm = range(rows) if perm is None else perm.tolist()
    to_x = [total([term(own[i], i)]) for i in range(rows)]
    to_other = [
        total(term((1 - own)[i], i) for i in range(rows) if perm[i] == k) for k in range(samples)
    ]
    return tuple(torch.stack(t).movedim(0, dim).to(g.dtype) for t in (to_x, to_other))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_with_repeats(backend, op, dtype):
    """Groups of no, one, two and many rows; long and short rows, several of each size."""
    perm = torch.tensor([3, 1, 3, 3, 0, 1, 3, 3, 5])
    for number, shape in enumerate(((37,), (64,), (2, 3000), (3, 2, 4), ())):
        lam = torch.tensor(0.3) if number % 2 else torch.rand(9)
        x, other, g = (torch.randn(n, *shape).to(dtype) for n in (9, 6, 9))
        x.requires_grad_(), other.requires_grad_()
        out = OPS[op](x, perm, lam, other)
        got = torch.autograd.grad(out, (x, other), g, retain_graph=True)
        for grad, want in zip(got, transposed(g, 6, perm, lam), strict=True):
            assert_same(grad, want)
        again = torch.autograd.grad(out, (x, other), g)
        assert all(map(torch.equal, got, again))


@pytest.mark.parametrize("op", OPS)
def test_the_gradient_is_bit_exact(backend, op):
    @property_test
    @given(st.data())
    def check(data):
        x, other, g, perm, lam, dim = draw_problem(data, LAMS, DTYPES)
        if data.draw(st.booleans(), "odd upstream"):
            g.select(dim, 0).fill_(data.draw(st.sampled_from([INF, NAN, 0.0]), "first row"))
        out = OPS[op](x.requires_grad_(), perm, lam, other.requires_grad_(), dim)
        got = torch.autograd.grad(out, (x, other), g)
        for grad, want in zip(got, transposed(g, other.shape[dim], perm, lam, dim), strict=True):
            assert_same(grad, want)

    check()


def draw_problem(data, values, dtypes):
    sample = data.draw(st.sampled_from([(), (1,), (3,), (37,), (64,), (2, 3, 4), (8, 2, 2)]))
    rows, samples = (data.draw(st.integers(1, 7), name) for name in ("rows", "samples"))
    dim = data.draw(st.integers(0, len(sample)), "dim")
    dtype = data.draw(st.sampled_from(dtypes), "dtype")
    x, other, g = (
        torch.randn(*sample[:dim], n, *sample[dim:]).to(dtype) for n in (rows, samples, rows)
    )
    index = st.lists(st.integers(0, samples - 1), min_size=rows, max_size=rows)
    perm = torch.tensor(data.draw(index, "perm"))
    if rows == samples and data.draw(st.booleans(), "in pairs"):
        perm = None
    return x, other, g, perm, draw_lam(data, rows, values), dim


@pytest.mark.parametrize("op", OPS)
def test_the_backward_is_the_adjoint(backend, op):
    """<M(x, o), g> = <x, g_x> + <o, g_o>; double backward gives M again."""

    @property_test
    @given(st.data())
    def check(data):
        x, other, g, perm, lam, dim = draw_problem(data, FINITE_LAMS, (torch.float64,))
        for t in (x, other, g):
            t.requires_grad_()
        out = OPS[op](x, perm, lam, other, dim)
        to_x, to_other = torch.autograd.grad(out, (x, other), g, create_graph=True)
        inner = (x * to_x).sum() + (other * to_other).sum()
        torch.testing.assert_close((out * g).sum(), inner, rtol=1e-12, atol=1e-12)
        (again,) = torch.autograd.grad((to_x, to_other), g, (x.detach(), other.detach()))
        torch.testing.assert_close(again, out.detach(), rtol=1e-12, atol=1e-12)

    check()


@pytest.mark.parametrize("perm", [[2, 0, 0, 2, 1], None], ids=["repeats", "in pairs"])
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, "per sample"])
def test_gradcheck(backend, lam, perm):
    samples = 5 if perm is None else 4
    perm = None if perm is None else torch.tensor(perm)
    x, other = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (5, samples))
    lam = torch.rand(5, dtype=torch.float64) if lam == "per sample" else torch.tensor(lam).double()
    for op in OPS.values():
        f = lambda a, b, op=op: op(a, perm, lam, b)  # noqa: E731
        assert torch.autograd.gradcheck(f, (x, other))
        assert torch.autograd.gradgradcheck(lambda a, b, f=f: f(a, b).sin(), (x, other))
    if 0 < float(lam.min()) < 1:
        f = lambda a, b, c: m.mix(a, perm, c, other=b)  # noqa: E731
        lam = lam.requires_grad_()
        assert torch.autograd.gradcheck(f, (x, other, lam))
        assert torch.autograd.gradgradcheck(f, (x, other, lam))


@pytest.mark.parametrize("shape", [(4, 3), (4,), (4, 2, 3)])
def test_the_gradient_to_lam(backend, shape):
    """Alone too, and where a coefficient is 0."""
    x, other, g = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    perm = torch.tensor([3, 3, 0, 1])
    per_row = (g * (x - other[perm])).reshape(4, -1).sum(1)
    for value in (0.0, 0.3, 1.0, [0.0, 1.0, 0.3, 0.5]):
        lam = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        (got,) = torch.autograd.grad(m.mix(x, perm, lam, other=other), lam, g)
        torch.testing.assert_close(got, per_row if lam.ndim else per_row.sum())


def test_only_what_is_needed(backend):
    perm, g = torch.tensor([1, 1]), torch.randn(2, 3)
    for op in OPS.values():
        for wanted in (0, 1):
            pair = [torch.randn(2, 3), torch.randn(2, 3)]
            pair[wanted].requires_grad_()
            out = op(pair[0], perm, torch.tensor(0.3), pair[1])
            out.backward(g)
            assert_same(pair[wanted].grad, transposed(g, 2, perm, 0.3)[wanted])
            assert pair[1 - wanted].grad is None


def test_gradients_have_the_layout_of_their_batch(backend):
    images = torch.channels_last
    x = torch.randn(4, 3, 2, 5).contiguous(memory_format=images).requires_grad_()
    other = torch.randn(6, 3, 2, 5).contiguous(memory_format=images).requires_grad_()
    perm, lam = torch.tensor([5, 0, 5, 2]), torch.rand(4)
    upstreams = {
        "channels_last": torch.randn(4, 3, 2, 5).contiguous(memory_format=images),
        "contiguous": torch.randn(4, 3, 2, 5),
        "expanded": torch.randn(()).expand(4, 3, 2, 5),
        "gaps": torch.randn(4, 3, 4, 5)[:, :, ::2],
    }
    for name, g in upstreams.items():
        got = torch.autograd.grad(m.mix(x, perm, lam, other=other), (x, other), g)
        for grad, want in zip(got, transposed(g, 6, perm, lam), strict=True):
            assert torch.equal(grad, want), name
            assert backend == "reference" or grad.is_contiguous(memory_format=images), name


def test_parts_of_one_tensor_under_autograd(backend):
    """In place in one half of a tensor, with the other half: the gradient to the whole."""
    perm, g = torch.tensor([3, 3, 0, 1]), torch.randn(8, 3)
    w = torch.randn(8, 3, requires_grad=True)
    t = w * 1
    m.mix_(t[:4], perm, 0.3, other=t[4:])
    (got,) = torch.autograd.grad(t, w, g)
    to_x, to_other = transposed(g[:4], 4, perm, 0.3)
    torch.testing.assert_close(got, torch.cat([to_x, to_other + g[4:]]))


def test_what_autograd_saved_is_not_overwritten_silently(backend):
    x, w = torch.randn(4, 3), torch.randn(4, 3, requires_grad=True)
    y = x * w
    m.mix_(x, None, 0.3, other=torch.randn(4, 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    z = m.mix_(torch.randn(4, 3, requires_grad=True).relu(), None, 0.3, other=x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_neither_batch_is_saved(backend):
    x, other = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        m.mix(x, torch.tensor([4, 4, 0, 1]), torch.tensor(0.3), other=other)
    if backend != "reference":
        assert all(t.numel() <= 4 for t in saved)
