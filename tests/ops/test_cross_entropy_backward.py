"""Backward of mixed_cross_entropy: in place, double backward, upstream gradients of every kind."""

import pytest
import torch
import torch.nn.functional as F

import mmix_fast as m
from tests.support.cases import DTYPES, TOLERANCE, eager_loss

RUNS_ON_GPU = True


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


def test_inplace_backward(backend):
    if backend == "reference":
        pytest.skip("reference allocates a buffer of its own")
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


def test_the_gradient_to_lam_is_never_dropped():
    z, y, perm = torch.randn(4, 3), torch.randint(0, 3, (4,)), torch.randperm(4)
    lam = torch.tensor(0.3, requires_grad=True)
    (got,) = torch.autograd.grad(m.mixed_cross_entropy(z, y, perm, lam), lam)
    torch.testing.assert_close(got, F.cross_entropy(z, y) - F.cross_entropy(z, y[perm]))
    with m.use_backend("cpp"), pytest.raises(RuntimeError, match="no gradient for lam"):
        m.mixed_cross_entropy(z, y, perm, lam)


@pytest.mark.parametrize("shape", ["expand", "transposed"])
def test_strided_upstream(backend, shape):
    z = torch.randn(4, 5, 3, requires_grad=True)
    y, perm = torch.randint(0, 5, (4, 3)), torch.randperm(4)
    up = torch.tensor(1.5).expand(4, 3) if shape == "expand" else torch.randn(3, 4).t()
    want = eager_loss(z, y, y[perm], 0.3, reduction="none")
    got = m.mixed_cross_entropy(z, y, perm, 0.3, reduction="none")
    torch.testing.assert_close(
        torch.autograd.grad(got, z, up), torch.autograd.grad(want, z, up), rtol=1e-5, atol=1e-6
    )


def test_gradcheck_of_float_targets_and_inplace(backend):
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    t, perm = torch.rand(3, 4).double() - 0.2, torch.tensor([2, 0, 1])
    w, lam = torch.rand(4).double(), torch.rand(3).double()
    y = torch.tensor([1, -100, 3])

    def soft(z):
        return m.mixed_cross_entropy(z, t, perm, lam, weight=w, label_smoothing=0.1)

    def hard(z):
        return m.mixed_cross_entropy(z, y, perm, lam, weight=w, reduction="none")

    for loss in (soft, hard):
        assert torch.autograd.gradcheck(loss, z)
        assert torch.autograd.gradgradcheck(loss, z)

    # gradcheck runs backward twice, which inplace_backward refuses: compare with a buffer instead.
    grads = [
        torch.autograd.grad(m.mixed_cross_entropy(z * 1, t, perm, lam, inplace_backward=over), z)
        for over in (False, True)
    ]
    torch.testing.assert_close(grads[0], grads[1])


def test_gradients_to_float_targets_and_weights_are_right_or_raise(backend):
    z, perm = torch.randn(3, 4), torch.tensor([2, 0, 1])
    t = torch.rand(3, 4, requires_grad=True)
    w = torch.rand(4, requires_grad=True)
    y = torch.tensor([1, 0, 3])

    def weighted(z, y):  # F.cross_entropy has no gradient for class weights
        return -(w[y] * z.log_softmax(1).gather(1, y[:, None])[:, 0]).sum() / w[y].sum()

    calls = [
        (t, lambda: m.mixed_cross_entropy(z, t, perm, 0.3), lambda: eager_loss(z, t, t[perm], 0.3)),
        (
            w,
            lambda: m.mixed_cross_entropy(z, y, perm, 0.3, weight=w),
            lambda: 0.3 * weighted(z, y) + 0.7 * weighted(z, y[perm]),
        ),
    ]
    for leaf, call, plain in calls:
        try:
            got = torch.autograd.grad(call(), leaf)
        except RuntimeError:
            assert backend != "reference"
            continue
        torch.testing.assert_close(got, torch.autograd.grad(plain(), leaf))


def test_autocast_and_functional_grad(backend):
    z, y, perm = torch.randn(4, 3), torch.randint(0, 3, (4,)), torch.randperm(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = m.mixed_cross_entropy(z.bfloat16(), y, perm, 0.3)
    assert got.dtype == torch.float32
    leaf = z.clone().requires_grad_()
    (want,) = torch.autograd.grad(eager_loss(leaf, y, y[perm], 0.3), leaf)
    try:
        grad = torch.func.grad(lambda a: m.mixed_cross_entropy(a, y, perm, 0.3))(z)
    except (RuntimeError, NotImplementedError):
        return
    torch.testing.assert_close(grad, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("up", [1.0, 2.0, 0.3, 0.0, -1e4])
def test_upstream_of_any_value_is_rounded_once(backend, dtype, up):
    """The forward computes the gradient for an upstream of 1; for any other, it is recomputed."""
    z = torch.randn(6, 37).to(dtype).requires_grad_()
    y, perm = torch.randint(0, 37, (6,)), torch.randperm(6)
    exact = z.detach().double().requires_grad_()
    want = torch.autograd.grad(eager_loss(exact, y, y[perm], 0.3) * up, exact)[0]
    got = torch.autograd.grad(
        m.mixed_cross_entropy(z, y, perm, 0.3),
        z,
        torch.tensor(up).to(torch.promote_types(dtype, torch.float32)),
    )[0]
    bound = TOLERANCE[dtype] * want.abs() + 1e-7 * abs(up)
    assert ((got.double() - want).abs() <= bound.clamp(min=6e-8)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_second_backward_gets_a_gradient_of_its_own(backend, dtype):
    z = torch.randn(6, 45).to(dtype).requires_grad_()
    loss = m.mixed_cross_entropy(z, torch.arange(6) % 5, torch.randperm(6), 0.3)
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    kept = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(loss, z)
    assert torch.equal(second, kept) or backend == "reference"
