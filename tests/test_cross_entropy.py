from itertools import product

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, TOLERANCE

import mmix_fast as m


def naive(z, a, b, lam, **kw):
    return lam * F.cross_entropy(z, a, **kw) + (1 - lam) * F.cross_entropy(z, b, **kw)


@pytest.mark.parametrize("shape", [(6, 11), (5, 4, 3), (33, 1000), (3, 9001)])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_parity_grid(backend, shape, kind, dtype, inplace):
    rows = shape[:1] + shape[2:]
    perm, lam = torch.randperm(shape[0]), 0.3125  # exact in every dtype
    grid = product([False, True], [-100, 2], [0.0, 0.1], ["mean", "sum", "none"])
    for weighted, ignore, eps, reduction in grid:
        if kind == "labels":
            y = torch.randint(0, shape[1], rows)
            y.view(-1)[1] = ignore
        elif ignore >= 0:
            continue
        else:
            y = torch.randn(shape).softmax(1).to(dtype)
        w = torch.rand(shape[1]).to(dtype) if weighted else None
        z = (3 * torch.randn(shape)).to(dtype).requires_grad_()
        z64 = z.detach().double().requires_grad_()
        y64 = y if kind == "labels" else y.double()
        kw = {"ignore_index": ignore, "label_smoothing": eps, "reduction": reduction}
        w64 = None if w is None else w.double()
        want = naive(z64, y64, y64[perm], lam, weight=w64, **kw)
        upstream = torch.rand_like(want)
        (want_grad,) = torch.autograd.grad(want, z64, upstream)
        got = m.mixed_cross_entropy(z, y, perm, lam, weight=w, inplace_backward=inplace, **kw)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        tol = TOLERANCE[got.dtype]
        torch.testing.assert_close(got.double(), want, rtol=tol, atol=tol)
        (grad,) = torch.autograd.grad(got, z, upstream.to(got.dtype))
        tol = TOLERANCE[dtype]
        torch.testing.assert_close(grad.double(), want_grad, rtol=tol, atol=tol)


def test_partner_labels_and_per_sample_lam(backend):
    z = torch.randn(6, 5, dtype=torch.float64)
    y, b, lam = torch.randint(0, 5, (6,)), torch.randint(0, 5, (6,)), torch.rand(6).double()
    b[2] = -100
    got = m.mixed_cross_entropy(z, y, None, 0.25, target_b=b)
    torch.testing.assert_close(got, naive(z, y, b, 0.25))
    rows = m.mixed_cross_entropy(z, y, None, lam, target_b=b, reduction="none")
    torch.testing.assert_close(rows, naive(z, y, b, lam, reduction="none"))
    w = torch.rand(5).double()
    rows = naive(z, y, b, lam, reduction="none", weight=w)
    divisor = (lam * w[y] + torch.where(b >= 0, (1 - lam) * w[b.clamp(0)], 0)).sum()
    got = m.mixed_cross_entropy(z, y, None, lam, target_b=b, weight=w)
    torch.testing.assert_close(got, rows.sum() / divisor)


def test_z_loss_and_softcap(backend):
    z = 4 * torch.randn(6, 5, dtype=torch.float64)
    y, perm = torch.randint(0, 5, (6,)), torch.randperm(6)
    y[0] = -100
    capped = 3 * torch.tanh(z / 3)
    valid, partner = (y >= 0).double(), (y[perm] >= 0).double()
    count = 0.3 * valid + 0.7 * partner
    extra = (count * 0.1 * capped.logsumexp(1).square()).sum() / count.sum()
    got = m.mixed_cross_entropy(z, y, perm, 0.3, z_loss=0.1, softcap=3.0)
    torch.testing.assert_close(got, naive(capped, y, y[perm], 0.3) + extra)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(backend, reduction):
    z = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    y, perm = torch.randint(0, 3, (4, 2)), torch.tensor([1, 2, 3, 0])

    def loss(z):
        return m.mixed_cross_entropy(
            z, y, perm, 0.3, reduction=reduction, z_loss=0.1, softcap=5.0, label_smoothing=0.1
        )

    assert torch.autograd.gradcheck(loss, z)
    assert torch.autograd.gradgradcheck(loss, z)


def test_masked_nan_and_ignored_rows(backend):
    z = torch.randn(4, 3)
    z[0, 2] = -float("inf")  # masked class, not a label
    z[1] = float("nan")
    z[3] = float("nan")
    z.requires_grad_()
    y = torch.tensor([0, 1, 2, -100])
    perm = torch.tensor([2, 1, 0, 3])
    y[2] = 1
    rows = m.mixed_cross_entropy(z, y, perm, 0.3, reduction="none")
    assert rows.isnan().tolist() == [False, True, False, False]
    assert rows[3] == 0
    (grad,) = torch.autograd.grad(rows, z, torch.ones(4))
    assert (grad[3] == 0).all() and grad[0].isfinite().all() and grad[0, 2] == 0


def test_nothing_counts(backend):
    z = torch.randn(3, 4, requires_grad=True)
    y, perm = torch.full((3,), -100), torch.arange(3)
    loss = m.mixed_cross_entropy(z, y, perm, 0.3)
    (grad,) = torch.autograd.grad(loss, z)
    assert loss.isnan() and (grad == 0).all()
    empty, none = torch.randn(0, 4), torch.zeros(0, dtype=torch.int64)
    assert m.mixed_cross_entropy(empty, none, none, 0.3).isnan()
    assert m.mixed_cross_entropy(empty, none, none, 0.3, reduction="sum") == 0


def test_lam_one_drops_the_partner(backend):
    z = torch.tensor([[0.0, -float("inf")], [1.0, 2.0]])
    y, perm = torch.tensor([0, 1]), torch.tensor([1, 0])
    torch.testing.assert_close(m.mixed_cross_entropy(z, y, perm, 1.0), F.cross_entropy(z, y))
    b = torch.full((2,), -100)
    assert m.mixed_cross_entropy(z, y, None, 1.0, target_b=b).isfinite()


def test_inplace_backward(backend):
    if backend == "reference":
        pytest.skip("reference keeps its own buffer")
    y, perm = torch.tensor([1, 0, 2]), torch.tensor([1, 2, 0])
    z = torch.randn(3, 4, requires_grad=True)
    h = z * 1
    (grad,) = torch.autograd.grad(m.mixed_cross_entropy(h, y, perm, 0.3, inplace_backward=True), h)
    assert grad.data_ptr() == h.data_ptr()
    h = z * 1
    other = h.square().sum()
    loss = m.mixed_cross_entropy(h, y, perm, 0.3, inplace_backward=True)
    loss.backward(retain_graph=True)
    for again in (other, loss):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            again.backward()
    loss = m.mixed_cross_entropy(z * 1, y, perm, 0.3, inplace_backward=True)
    with pytest.raises(RuntimeError, match="inplace_backward=False"):
        torch.autograd.grad(loss, z, create_graph=True)


@pytest.mark.parametrize("layout", ["sliced", "transposed", "expanded"])
def test_layouts(backend, layout):
    make = {
        "sliced": lambda: torch.randn(6, 9)[:, :5],
        "transposed": lambda: torch.randn(5, 6).t(),
        "expanded": lambda: torch.randn(1, 5).expand(6, 5),
    }
    z = make[layout]()
    y, perm = torch.randint(0, 5, (6,)), torch.randperm(6)
    for inplace in (False, True):
        a, b = z.detach().requires_grad_(), z.detach().clone().requires_grad_()
        want = torch.autograd.grad(naive(b, y, y[perm], 0.3), b)
        got = m.mixed_cross_entropy(a, y, perm, 0.3, inplace_backward=inplace)
        torch.testing.assert_close(torch.autograd.grad(got, a), want)
        z = make[layout]()


def test_extra_gradients_are_never_dropped():
    z, y, perm = torch.randn(4, 3), torch.randint(0, 3, (4,)), torch.randperm(4)
    lam = torch.tensor(0.3, requires_grad=True)
    (got,) = torch.autograd.grad(m.mixed_cross_entropy(z, y, perm, lam), lam)
    torch.testing.assert_close(got, F.cross_entropy(z, y) - F.cross_entropy(z, y[perm]))
    with m.use_backend("cpp"), pytest.raises(RuntimeError, match="no gradient for lam"):
        m.mixed_cross_entropy(z, y, perm, lam)
