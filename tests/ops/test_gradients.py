"""Gradients of a mix for values of λ at which the kernels branch.

In the backward, the coefficients lam[i] and 1-lam[j] are independent: a coefficient of exactly 0
drops its own term, and the other term keeps its coefficient.
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
    along,
    assert_same,
    draw_lam,
    mixed,
    transposed,
)

RUNS_ON_GPU = True


def mix_batch_(x, perm, lam, dim):
    return m.mix_batch_(x, torch.zeros(len(perm), dtype=torch.int64), perm, lam, num_classes=2)[0]


OPS = {
    "mix": lambda x, perm, lam, dim: m.mix(x, perm, lam, dim=dim),
    "mix_": lambda x, perm, lam, dim: m.mix_(x.clone(), perm, lam, dim=dim),
    "mix_batch_": lambda x, perm, lam, dim: mix_batch_(x.clone(), perm, lam, dim),
}


def draw_strided(data, shape, dtype):
    """Random values with random strides: permuted dimensions, gaps, or one expanded value."""
    if data.draw(st.integers(0, 5), "expanded") == 0:
        return torch.randn(()).to(dtype).expand(shape)
    order = data.draw(st.permutations(range(len(shape))), "order")
    step = data.draw(st.sampled_from([1, 1, 2]), "step")
    whole = torch.randn([shape[d] for d in order[:-1]] + [shape[order[-1]] * step]).to(dtype)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return whole[..., ::step].permute(inverse)


SAMPLES = ((), (1,), (3,), (37,), (64,), (2, 3, 4), (8, 2, 2))


def draw_problem(data, op, values=LAMS, dtypes=DTYPES):
    dtype = data.draw(st.sampled_from(dtypes), "dtype")
    tail = data.draw(
        st.sampled_from([(), (1,), (3,), (37,), (64,), (2, 3, 4), (8, 2, 2)]), "sample"
    )
    batch = data.draw(st.integers(1, 7), "batch")
    dim = 0 if op == "mix_batch_" else data.draw(st.integers(0, len(tail)), "dim")
    shape = (*tail[:dim], batch, *tail[dim:])
    perm = torch.tensor(data.draw(st.permutations(range(batch)), "perm"))
    lam = draw_lam(data, batch, values)
    return draw_strided(data, shape, dtype), draw_strided(data, shape, dtype), perm, lam, dim


@pytest.mark.parametrize("op", OPS)
def test_the_gradient_of_a_mix_is_bit_exact(backend, op):
    @property_test
    @given(st.data())
    def check(data):
        x, g, perm, lam, dim = draw_problem(data, op)
        if data.draw(st.booleans(), "odd upstream"):
            g = g.clone()
            g.select(dim, 0).fill_(data.draw(st.sampled_from([INF, NAN, 0.0]), "first row"))
        x = x.clone().requires_grad_()
        out = OPS[op](x, perm, lam, dim)
        assert_same(out.detach(), mixed(x.detach(), perm, lam, dim))
        assert_same(torch.autograd.grad(out, x, g)[0], transposed(g, perm, lam, dim))

    check()


@pytest.mark.parametrize("op", OPS)
def test_the_backward_is_the_adjoint(backend, op):
    """<M x, g> = <x, M' g>. Double backward computes M'', which is M."""

    @property_test
    @given(st.data())
    def check(data):
        x, g, perm, lam, dim = draw_problem(data, op, FINITE_LAMS, (torch.float64,))
        x, g = x.clone().requires_grad_(), g.clone().requires_grad_()
        out = OPS[op](x, perm, lam, dim)
        (back,) = torch.autograd.grad(out, x, g, create_graph=True)
        torch.testing.assert_close((out * g).sum(), (x * back).sum(), rtol=1e-12, atol=1e-12)
        (again,) = torch.autograd.grad(back, g, x)
        assert_same(again, mixed(x.detach(), perm, lam, dim))

    check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_pair_of_coefficients_in_every_layout(backend, dtype):
    """Rows of several vectors and a tail, rows shorter than a vector, channels_last images."""
    values = torch.tensor(LAMS)
    own, other = torch.meshgrid(torch.arange(len(LAMS)), torch.arange(len(LAMS)), indexing="ij")
    # Rows 2k and 2k+1 are each other's partners, so every pair (lam[i], 1-lam[j]) occurs.
    lam = torch.stack([values[own.reshape(-1)], values[other.reshape(-1)]], 1).reshape(-1)
    n = len(lam)
    perm = torch.arange(n) ^ 1
    images = torch.channels_last
    for shape, layout in (((n, 37), None), ((n, 2), None), ((n, 3, 2, 4), images)):
        g = torch.randn(shape).to(dtype)
        if layout:
            g = g.contiguous(memory_format=layout)
        x = torch.zeros_like(g).requires_grad_()
        want = transposed(g, perm, lam)
        assert_same(torch.autograd.grad(m.mix(x, perm, lam), x, g)[0], want)
        assert_same(torch.autograd.grad(m.mix_(x * 1, perm, lam), x, g)[0], want)
        columns = torch.randn(2, *shape).to(dtype)[0].transpose(0, -1)  # the batch comes last
        want = transposed(columns, perm, lam, dim=-1 % columns.ndim)
        x = torch.zeros_like(columns).requires_grad_()
        got = torch.autograd.grad(m.mix(x, perm, lam, dim=-1), x, columns)[0]
        assert_same(got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_coefficients_of_0_and_1_keep_the_bits(backend, dtype):
    """NaN of either sign and -0.0 pass a coefficient of 1; a coefficient of 0 drops the term."""
    odd = torch.tensor([NAN, -NAN, INF, -INF, -0.0, 0.0, 1.0]).to(dtype)
    g = torch.stack([odd, torch.ones(7, dtype=dtype), odd.flip(0), odd])
    perm = torch.tensor([1, 0, 3, 2])
    # Rows 0 and 1 (lam = 1) keep their own gradient; rows 2 and 3 (lam = 0) exchange theirs.
    lam = torch.tensor([1.0, 1.0, 0.0, 0.0])
    x = torch.zeros_like(g).requires_grad_()
    (got,) = torch.autograd.grad(m.mix(x, perm, lam), x, g)
    want = torch.stack([g[0], g[1], g[3], g[2]])
    assert_same(got, want)
    # lam = (0, 1): both coefficients of row 0 are 0, those of row 1 are 1 and 1.
    (got,) = torch.autograd.grad(m.mix(x[:2], perm[:2], torch.tensor([0.0, 1.0])), x, g[:2])
    assert_same(got[0], torch.zeros(7, dtype=dtype))
    assert_same(got[1], g[1] + g[0])


def first_and_second(f, x, lam, g):
    """The gradients of <f(x, lam), g>, then the gradients of their product with fixed numbers."""
    x, lam, g = (t.clone().requires_grad_() for t in (x, lam, g))
    first = torch.autograd.grad(f(x, lam), (x, lam), g, create_graph=True)
    product = sum((t * torch.arange(1.0, t.numel() + 1).view_as(t)).sum() for t in first)
    return *first, *torch.autograd.grad(product, (x, lam, g))


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_gradient_to_lam_is_the_formulas(backend, per_sample):
    """At λ of 0 and 1 too, where the kernels leave out a term."""
    perm, dim = torch.tensor([2, 0, 1, 4, 3]), 1
    x, g = (torch.randn(3, 5, 4, dtype=torch.float64) for _ in range(2))

    def formula(x, lam):
        lam = along(lam, x, dim) if lam.ndim else lam
        return lam * x + (1 - lam) * x.index_select(dim, perm)

    for value in FINITE_LAMS:
        lam = torch.tensor([0.0, value, 1.0, value, 0.0] if per_sample else value).double()
        got = first_and_second(lambda x, lam: m.mix(x, perm, lam, dim=dim), x, lam, g)
        torch.testing.assert_close(got, first_and_second(formula, x, lam, g))
        assert_same(got[0].detach(), transposed(g, perm, lam, dim))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_gradients_are_rounded_once(backend, dtype):
    """The two terms are added in float32 and rounded once, whether or not lam requires grad."""
    x = torch.randn(64, 33).to(dtype).requires_grad_()
    perm, g = torch.randperm(64), torch.randn(64, 33).to(dtype)
    for lam in (torch.rand(64), torch.rand(64, requires_grad=True), torch.tensor(0.3)):
        want = transposed(g, perm, lam.detach())
        assert_same(torch.autograd.grad(m.mix(x, perm, lam), x, g)[0], want)


@pytest.mark.parametrize("lam", [[0.0, 1.0, 0.3, 0.0, 1.0], [0.0, 0.0, 1.0, 2.0**-60, NAN]])
def test_func_transforms_at_special_values_of_lam(backend, lam):
    perm, lam = torch.tensor([2, 0, 1, 4, 3]), torch.tensor(lam).double()
    x, g = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    g[2] = INF
    _, pull = torch.func.vjp(lambda a: m.mix(a, perm, lam), x)
    assert_same(pull(g)[0], transposed(g, perm, lam))
    batch = torch.stack([x, g])
    got = torch.func.vmap(lambda a: m.mix(a, perm, lam))(batch)
    assert_same(got, torch.stack([mixed(x, perm, lam), mixed(g, perm, lam)]))
    try:
        _, tangent = torch.func.jvp(lambda a: m.mix(a, perm, lam), (x,), (g,))
    except (RuntimeError, NotImplementedError):
        return
    assert_same(tangent, mixed(g, perm, lam))
