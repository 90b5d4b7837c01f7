"""mix and mix_: bits, gradients, autograd's checks, and every layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmix_fast as m
from mmix_fast import dispatch
from tests.support.cases import DTYPES, LAYOUTS, PERMS, expected_mix
from tests.support.properties import property_test

RUNS_ON_GPU = True


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_sample", [False, True])
def test_bits_in_every_layout(backend, layout, dtype, per_sample):
    make, dim = LAYOUTS[layout]
    for perm_name, make_perm in PERMS.items():
        x = make(dtype)
        perm = make_perm(x.shape[dim])
        lam = torch.rand(x.shape[dim]) if per_sample else torch.tensor(0.3)
        want = expected_mix(x, perm, lam, dim)
        got = m.mix(x, perm, lam, dim=dim)
        assert torch.equal(got, want), perm_name
        if x.is_contiguous(memory_format=torch.channels_last) and x.ndim == 4:
            assert got.is_contiguous(memory_format=torch.channels_last)
        version = x._version
        assert m.mix_(x, perm, lam, dim=dim) is x
        assert torch.equal(x, want), perm_name
        assert x._version == version + 1


def test_eager_formula_bit_for_bit(backend):
    x, perm, lam = torch.randn(64, 100), torch.randperm(64), torch.tensor(0.37)
    assert torch.equal(m.mix(x, perm, lam), lam * x + (1 - lam) * x[perm])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_term_with_coefficient_0_is_absent(backend, dtype):
    x = torch.tensor([[1.0, -0.0, 3.0], [float("inf"), float("nan"), -float("inf")]]).to(dtype)
    perm = torch.tensor([1, 0])
    for lam, want in ((1.0, x), (0.0, x[perm])):
        for got in (m.mix(x, perm, lam), m.mix_(x.clone(), perm, lam)):
            assert torch.equal(got.nan_to_num(7.0), want.nan_to_num(7.0))
            assert torch.equal(got.signbit(), want.signbit())


def test_lam_outside_0_to_1_nan_and_float64(backend):
    x, perm = torch.randn(4, 3), torch.tensor([1, 2, 3, 0])
    assert torch.equal(m.mix(x, perm, 1.7), expected_mix(x, perm, torch.tensor(1.7)))
    assert m.mix(x, perm, float("nan")).isnan().all()
    # A NaN whose mantissa bits are all 1: rounding to bfloat16 must not carry into its sign.
    ones = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    assert m.mix(x.bfloat16(), perm, ones).isnan().all()
    x = x.double()
    assert torch.equal(m.mix(x, perm, 0.1), 0.1 * x + (1 - 0.1) * x[perm])


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, "per_sample"])
def test_gradients(backend, lam):
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    perm = torch.tensor([2, 0, 1, 4, 3])
    lam = torch.rand(5, dtype=torch.float64) if lam == "per_sample" else torch.tensor(lam).double()
    fixed = lam.clone()
    lam.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: m.mix(a, perm, fixed), x)
    assert torch.autograd.gradcheck(lambda a: m.mix_(a * 1, perm, fixed), x)
    out = m.mix(x, perm, lam)
    weights = torch.randn_like(out)
    (got,) = torch.autograd.grad((out * weights).sum(), lam)
    per_row = (weights * (x - x[perm])).detach().sum(1)
    torch.testing.assert_close(got, per_row if lam.ndim else per_row.sum())
    if 0 < float(fixed.min()) < 1:
        assert torch.autograd.gradcheck(lambda a, b: m.mix(a, perm, b), (x, lam))
        assert torch.autograd.gradgradcheck(lambda a, b: m.mix(a, perm, b), (x, lam))
        assert torch.autograd.gradgradcheck(lambda a: m.mix_(a * 1, perm, fixed).sin(), x)


def test_saved_relu_output_raises_in_backward(backend):
    x = torch.randn(4, 3, requires_grad=True)
    y = m.mix_(x.relu(), torch.tensor([1, 2, 3, 0]), 0.3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_func_transforms_are_right_or_raise(backend):
    x, perm = torch.randn(4, 3), torch.tensor([1, 2, 3, 0])
    want = torch.autograd.functional.jacobian(lambda a: m.mix(a, perm, 0.3).square().sum(), x)
    got = torch.func.grad(lambda a: m.mix(a, perm, 0.3).square().sum())(x)
    torch.testing.assert_close(got, want)
    batch = torch.randn(2, 4, 3)
    got = torch.func.vmap(lambda a: m.mix(a, perm, 0.3))(batch)
    torch.testing.assert_close(got, m.mix(batch, perm, 0.3, dim=1))
    try:
        _, tangent = torch.func.jvp(lambda a: m.mix(a, perm, 0.3), (x,), (torch.ones_like(x),))
    except (RuntimeError, NotImplementedError):
        return
    torch.testing.assert_close(tangent, torch.ones_like(x))


def test_forward_mode_is_never_silently_wrong(backend):
    x, perm = torch.randn(4, 3), torch.tensor([1, 2, 3, 0])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        try:
            out = m.mix(dual, perm, 0.3)
        except (RuntimeError, NotImplementedError):
            return
        tangent = torch.autograd.forward_ad.unpack_dual(out).tangent
    torch.testing.assert_close(tangent, torch.ones_like(x))


def test_an_expanded_tensor_is_mixed_out_of_place(backend):
    x = torch.randn(1, 5).expand(4, 5)
    perm = torch.tensor([1, 2, 3, 0])
    assert torch.equal(m.mix(x, perm, 0.3), expected_mix(x, perm, 0.3))
    x = torch.randn(4, 1).expand(4, 5)
    assert torch.equal(m.mix(x, perm, 0.3), expected_mix(x, perm, 0.3))


@pytest.mark.parametrize("views", [torch.unbind, lambda x: x.chunk(2), lambda x: x.split(2)])
def test_one_of_several_views_is_refused_before_a_write(backend, views):
    base = torch.randn(4, 4, requires_grad=True) * 1
    view = views(base)[0]
    before = base.detach().clone()
    with pytest.raises(RuntimeError, match="x must not be one of several views"):
        m.mix_(view, torch.arange(view.shape[0]).roll(1), 0.3)
    assert torch.equal(base, before)


def test_a_mix_in_place_of_a_saved_tensor_raises_in_backward(backend):
    x, w = torch.randn(4, 3), torch.randn(4, 3, requires_grad=True)
    y = x * w
    m.mix_(x, torch.tensor([1, 2, 3, 0]), 0.3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@settings(property_test, max_examples=60)
@given(st.data())
def test_random_shapes_strides_perms(data):
    ndim = data.draw(st.integers(1, 4))
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=ndim, max_size=ndim))
    order = data.draw(st.permutations(range(ndim)))
    steps = data.draw(st.lists(st.integers(1, 2), min_size=ndim, max_size=ndim))
    dim = data.draw(st.integers(0, ndim - 1))
    whole = torch.randn([s * k for s, k in zip(sizes, steps, strict=True)])
    x = whole[tuple(slice(None, None, k) for k in steps)].permute(order)
    perm = torch.tensor(data.draw(st.permutations(range(x.shape[dim]))))
    lam = torch.rand(())
    want = expected_mix(x, perm, lam, dim)
    for b in dispatch.BACKENDS:
        if b.device in (None, "cpu") and not b.missing():
            with m.use_backend(b.name):
                assert torch.equal(m.mix(x, perm, lam, dim=dim), want)
    assert torch.equal(m.mix_(x, perm, lam, dim=dim), want)


def test_default_device_does_not_matter(backend):
    x, perm = torch.randn(4, 3), torch.tensor([1, 2, 3, 0])
    want = expected_mix(x, perm, 0.3)
    with torch.device("meta"):
        got = m.mix(x, perm, 0.3)
    assert torch.equal(got, want)
