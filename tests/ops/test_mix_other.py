"""mix and mix_ with a second batch: bits, layouts, repeats, special λ, memory, errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mmix_fast as m
from tests.support.cases import DTYPES, LAYOUTS
from tests.support.properties import property_test
from tests.support.special_lam import (
    INF,
    LAMS,
    NAN,
    acc_of,
    along,
    assert_same,
    combined,
    draw_lam,
)

RUNS_ON_GPU = True


def expected(x, other, perm, lam, dim=0):
    """The formula, each operation rounded once; a term with coefficient 0 is left out."""
    acc, rows = acc_of(x.dtype), x.shape[dim]
    own = along(torch.as_tensor(lam).to(acc).expand(rows), x, dim)
    theirs = other if perm is None else other.index_select(dim, perm)
    return combined(own, x.to(acc), 1 - own, theirs.to(acc)).to(x.dtype)


def batch_like(x, samples, dim):
    """A random batch with x's layout, except its number of samples."""
    order = sorted(range(x.ndim), key=lambda d: (x.stride(d), x.shape[d] == 1), reverse=True)
    shape = [samples if d == dim % x.ndim else size for d, size in enumerate(x.shape)]
    dense = torch.randn([shape[d] for d in order]).to(x.dtype)
    return dense.permute([order.index(d) for d in range(x.ndim)])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_in_every_layout(backend, layout, dtype):
    make, dim = LAYOUTS[layout]
    x = make(dtype)
    rows = x.shape[dim]
    cases = [(samples, torch.randint(0, samples, (rows,))) for samples in (1, rows + 3)]
    for samples, perm in (*cases, (rows, None)):
        for lam in (torch.tensor(0.3), torch.rand(rows)):
            other = batch_like(x, samples, dim)
            want = expected(x, other, perm, lam, dim % x.ndim)
            got = m.mix(x, perm, lam, other=other, dim=dim)
            assert_same(got, want)
            assert got.stride() == torch.empty_like(x).stride()
            mixed, version, kept = x.clone(), x._version, other.clone()
            assert m.mix_(mixed, perm, lam, other=other, dim=dim) is mixed
            assert_same(mixed, want)
            assert mixed._version == 1 and x._version == version and torch.equal(other, kept)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_in_another_layout(backend, dtype):
    """Other strides than x's, gaps, another order of dimensions, expanded, in place in a view."""
    perm, lam = torch.tensor([4, 0, 0, 2, 4, 1]), torch.rand(6)
    images = torch.randn(5, 3, 4, 8).to(dtype)
    others = {
        "contiguous": images,
        "channels_last": images.contiguous(memory_format=torch.channels_last),
        "gaps": torch.randn(5, 3, 9, 16).to(dtype)[..., 1::2, :8],
        "every other sample": torch.randn(10, 3, 4, 8).to(dtype)[::2],
        "strided": torch.randn(5, 3, 4, 16).to(dtype)[..., ::2],
        "one for all": torch.randn(1, 3, 4, 8).to(dtype).expand(5, -1, -1, -1),
        "one pixel": torch.randn(5, 3, 1, 1).to(dtype).expand(-1, -1, 4, 8),
    }
    layouts = {
        "contiguous": lambda: torch.randn(6, 3, 4, 8).to(dtype),
        "channels_last": lambda: (
            torch.randn(6, 3, 4, 8).to(dtype).contiguous(memory_format=torch.channels_last)
        ),
        "gaps": lambda: torch.randn(6, 3, 4, 17).to(dtype)[..., :8],
        "strided": lambda: torch.randn(6, 3, 4, 16).to(dtype)[..., ::2],
        "channels": lambda: torch.randn(6, 7, 4, 8).to(dtype)[:, 2:5],
    }
    for name, other in others.items():
        for make in layouts.values():
            x = make()
            want = expected(x, other, perm, lam)
            assert_same(m.mix(x, perm, lam, other=other), want)
            m.mix_(x, perm, lam, other=other)
            assert torch.equal(x, want), name


def test_the_formula_of_eager_pytorch(backend):
    x, other = torch.randn(64, 100), torch.randn(70, 100)
    perm, lam = torch.randint(0, 70, (64,)), torch.tensor(0.37)
    want = lam * x + (1 - lam) * other[perm]
    assert torch.equal(m.mix(x, perm, lam, other=other), want)
    assert torch.equal(m.Mix(perm, lam).mix(x, other=other), want)
    assert torch.equal(m.Mix(perm, lam).mix_(x, other=other), want)


def test_other_may_be_x_itself_out_of_place(backend):
    x, perm = torch.randn(5, 7), torch.tensor([1, 1, 0, 4, 2])
    assert torch.equal(m.mix(x, perm, 0.3, other=x), expected(x, x, perm, 0.3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_of_lam(backend, dtype):
    """A term whose coefficient is 0 is absent: NaN, inf and -0.0 of the other side do not leak."""
    odd = torch.tensor([1.0, -0.0, 0.0, INF, -INF, NAN, 2.5, -3.0, 0.1]).to(dtype)
    x, other = odd.expand(len(LAMS), -1).clone(), odd.flip(0).expand(4, -1).clone()
    other[1] = 1
    perm = torch.arange(len(LAMS)) % 4
    for lam in (torch.tensor(LAMS), *(torch.tensor(value) for value in LAMS)):
        want = expected(x, other, perm, lam)
        for got in (
            m.mix(x, perm, lam, other=other),
            m.mix_(x.clone(), perm, lam, other=other),
        ):
            assert_same(got, want)
            assert torch.equal(got.signbit() & ~got.isnan(), want.signbit() & ~want.isnan())


def test_batches_without_samples(backend):
    x, empty, none = torch.randn(3, 4), torch.randn(0, 4), torch.zeros(0, dtype=torch.int64)
    for other in (x, empty):
        assert m.mix(empty, none, 0.3, other=other).shape == (0, 4)
        assert m.mix_(empty, none, 0.3, other=other).shape == (0, 4)
    assert m.mix(empty, None, 0.3, other=empty).shape == (0, 4)
    flat, perm = torch.randn(3, 0), torch.tensor([1, 1, 0])
    assert m.mix(flat, perm, 0.3, other=torch.randn(2, 0)).shape == (3, 0)
    for op in (m.mix, m.mix_):
        with pytest.raises(IndexError, match=r"other must have samples for perm to name, got"):
            op(x, perm, 0.3, other=empty)


@pytest.mark.parametrize("op", ["mix", "mix_"])
def test_random_problems(backend, op):
    @property_test
    @given(st.data())
    def check(data):
        sample = data.draw(st.sampled_from([(), (1,), (3,), (37,), (64,), (2, 3, 4), (8, 2, 2)]))
        rows, samples = (data.draw(st.integers(1, 7), name) for name in ("rows", "samples"))
        dim = data.draw(st.integers(0, len(sample)), "dim")
        dtype = data.draw(st.sampled_from(DTYPES), "dtype")
        x, other = (torch.randn(*sample[:dim], n, *sample[dim:]).to(dtype) for n in (rows, samples))
        index = st.lists(st.integers(0, samples - 1), min_size=rows, max_size=rows)
        perm = torch.tensor(data.draw(index, "perm"))
        if rows == samples and data.draw(st.booleans(), "in pairs"):
            perm = None
        lam = draw_lam(data, rows)
        want = expected(x, other, perm, lam, dim)
        assert_same(getattr(m, op)(x, perm, lam, other=other, dim=dim), want)

    check()


X, OTHER, PERM = torch.arange(6.0).reshape(3, 2), torch.ones(5, 2), torch.tensor([4, 0, 4])
LIKE = r"other must be float32 of shape \(N, 2\) for any N"
ERRORS = [
    ({"other": [1.0]}, TypeError, rf"{LIKE}, got list"),
    ({"other": OTHER.half()}, TypeError, rf"{LIKE}, got float16 of shape \(5, 2\)"),
    ({"other": OTHER[:, :1]}, ValueError, rf"{LIKE}, got float32 of shape \(5, 1\)"),
    ({"other": OTHER[0]}, ValueError, rf"{LIKE}, got float32 of shape \(2,\)"),
    ({"other": OTHER[..., None]}, ValueError, rf"{LIKE}, got float32 of shape \(5, 2, 1\)"),
    ({"other": OTHER.to("meta")}, ValueError, "other must be on cpu, got meta"),
    (
        {"dim": 1},
        ValueError,
        r"other must be float32 of shape \(3, N\) for any N, got float32 of shape \(5, 2\)",
    ),
    ({"perm": PERM[:2]}, ValueError, r"perm must be int64 of shape \(3,\), got int64.*\(2,\)"),
    ({"perm": PERM.int()}, TypeError, r"perm must be int64 of shape \(3,\), got int32"),
    ({"perm": PERM.to("meta")}, ValueError, "perm must be on cpu, got meta"),
    (
        {"perm": None},
        ValueError,
        r"other must have 3 samples, as x, where perm is None, got float32 of shape \(5, 2\)",
    ),
    ({"perm": None, "other": None}, TypeError, r"perm must be int64 of shape \(3,\), got NoneType"),
    ({"perm": PERM + 1}, IndexError, r"perm must hold indices of other in \[0, 4\], got 5"),
    ({"perm": PERM - 1}, IndexError, r"perm must hold indices of other in \[0, 4\], got -1"),
    ({"dim": 2}, IndexError, r"dim must be in \[-2, 1\], got 2"),
    ({"x": [1.0]}, TypeError, "x must be a Tensor, got list"),
    ({"lam": "a"}, TypeError, "lam must be a float or a floating tensor, got str 'a'"),
    ({"lam": torch.rand(5)}, ValueError, r"lam must have shape \(\) or \(3,\).*\(5,\)"),
]


@pytest.mark.on_cpu
@pytest.mark.parametrize("op", ["mix", "mix_"])
@pytest.mark.parametrize("change, kind, message", ERRORS)
def test_errors(backend, op, change, kind, message):
    before, version = X.clone(), X._version
    with pytest.raises(kind, match=message):
        getattr(m, op)(**{"x": X, "perm": PERM, "lam": 0.3, "other": OTHER, **change})
    assert torch.equal(X, before) and X._version == version


def test_shared_memory_is_refused_before_a_write(backend):
    t = torch.randn(8, 4)
    before, shared = t.clone(), "other must not share memory with x"
    views = {
        "itself": (t, t),
        "the whole": (t[:4], t),
        "one sample": (t[:5], t[4:]),
        "one element": (t.view(-1)[:17].as_strided((4, 4), (4, 1)), t.view(-1)[15:31].view(4, 4)),
        "transposed": (t[:4].t(), t[:4]),
        "strides that differ": (t.view(4, 8)[:, :4], t[4:]),
        "odd and all": (t[::2], t[1:5]),
    }
    if t.is_cpu:
        views["another storage"] = t, torch.from_numpy(t.numpy())
    for name, (x, other) in views.items():
        perm = torch.zeros(len(x), dtype=torch.int64)
        with pytest.raises(RuntimeError, match=shared):
            m.mix_(x, perm, 0.3, other=other)
        assert torch.equal(t, before) and t._version == 0, name


def test_parts_of_one_tensor_that_share_nothing(backend):
    """Labelled and unlabelled samples of one batch."""
    t = torch.randn(8, 6)
    perm = torch.tensor([3, 3, 0, 1])
    for first, second in (
        (t[:4], t[4:]),
        (t[4:], t[:4]),
        (t[::2], t[1::2]),
        (t[:3], t[3:]),
        (t[:4, :3], t[:4, 3:]),
        (t[:0], t),
    ):
        rows = perm[: len(first)]
        want, kept = expected(first, second, rows, 0.3), second.clone()
        m.mix_(first, rows, 0.3, other=second)
        assert torch.equal(first, want) and torch.equal(second, kept)


IN_PLACE = [
    (lambda x, o: (x.requires_grad_(), o, 0.3), "x must not be a leaf that requires grad"),
    (lambda x, o: (x, o, torch.tensor(0.3, requires_grad=True)), "lam must not require grad"),
    (lambda x, o: (x[:1].expand(4, 3), o, 0.3), "x must not overlap itself in memory"),
    (lambda x, o: (x.chunk(2)[0], o[:2].requires_grad_(), 0.3), "x must not be one of several"),
    (lambda x, o: (x.requires_grad_().chunk(1)[0], o, 0.3), "x must not be a leaf"),
]


@pytest.mark.parametrize("number", range(len(IN_PLACE)))
def test_errors_in_place(backend, number):
    call, message = IN_PLACE[number]
    base = torch.randn(4, 3)
    before = base.clone()
    x, other, lam = call(base, torch.randn(4, 3))
    with pytest.raises(RuntimeError, match=message):
        m.mix_(x, None, lam, other=other)
    assert torch.equal(base, before) and base._version == 0
