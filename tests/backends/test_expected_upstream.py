"""On the CPU, a forward writes the gradient for the upstream gradient that it expects."""

import math

import pytest
import torch

import mmix_fast as m
from mmix_fast import ops
from mmix_fast.autograd import loss as autograd
from tests.support.cases import DTYPES


@pytest.fixture
def calls(monkeypatch):
    """The kernels that autograd calls. A forward with gradient is listed as its upstream."""
    seen = []

    def spy(namespace, name):
        op = ops.kernel(namespace, name)

        def call(*args):
            written = args[-1] if name == "cross_entropy" else None
            seen.append(name.removeprefix("cross_entropy") if written is None else written)
            return op(*args)

        return call

    monkeypatch.setattr(autograd, "kernel", spy)
    monkeypatch.setattr(autograd, "_upstreams", {})
    return seen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6, 40), (6, 300), (6, 40, 3)], ids=str)  # tiles, rows, both
def test_a_forward_writes_the_gradient_for_the_upstream_that_came_twice(calls, dtype, shape):
    z, perm = torch.randn(shape).to(dtype), torch.arange(6).flip(0)
    y = torch.randint(0, 40, shape[:1] + shape[2:])

    def step(up, **options):
        calls.clear()
        own = z.clone().requires_grad_()
        loss = m.mixed_cross_entropy(own, y, perm, 0.3, **options)
        (gradient,) = torch.autograd.grad(loss, own, torch.tensor(up, dtype=loss.dtype))
        return gradient, list(calls)

    first, seen = step(1.0)
    assert seen == [1.0]
    scaled, seen = step(0.3)
    assert seen == [1.0, "_rescale_"]
    again, seen = step(0.3)  # 1, then 0.3
    assert seen == ["", "_backward"] and torch.equal(again, scaled)
    again, seen = step(0.3)
    assert len(seen) == 1 and math.isclose(seen[0], 0.3, rel_tol=1e-6)
    assert torch.equal(again, scaled)
    assert step(1.0, reduction="sum")[1] == [1.0]  # another kind of loss
    assert step(0.3, inplace_backward=True)[1] == ["", "_backward_"]
    second, seen = step(1.0)  # whatever upstream the forward expected, it was wrong
    assert seen[1:] == ["_backward"] and torch.equal(second, first)
    assert step(1.0)[1] == ["", "_backward"]
    assert step(1.0)[1] == [1.0]


def test_two_losses_of_one_kind_with_different_upstreams(calls):
    """They share one expectation: a forward would write the gradient for the other upstream."""
    z, y, perm = torch.randn(6, 40), torch.arange(6), torch.arange(6).flip(0)
    for _ in range(3):
        calls.clear()
        own = z.clone().requires_grad_()
        one, two = (m.mixed_cross_entropy(own * k, y, perm, 0.3) for k in (1, 2))
        (got,) = torch.autograd.grad(0.7 * one + 0.3 * two, own)
    assert calls == ["", "", "_backward", "_backward"]
    one, two = (m.reference.mixed_cross_entropy(own * k, y, perm, 0.3) for k in (1, 2))
    torch.testing.assert_close(got, torch.autograd.grad(0.7 * one + 0.3 * two, own)[0])


@pytest.mark.parametrize("up", [0.0, -2.0, 65536.0, math.inf, math.nan])
def test_the_expected_upstream_may_be_any_number(calls, up):
    z, y, perm = torch.randn(6, 40), torch.arange(6), torch.arange(6).flip(0)
    gradients = []
    for _ in range(4):
        own = z.clone().requires_grad_()
        loss = m.mixed_cross_entropy(own, y, perm, 0.3)
        gradients += torch.autograd.grad(loss, own, torch.tensor(up))
    # NaN differs from every upstream before it.
    assert (calls[-1] == up) if up == up else calls[-2:] == ["", "_backward"]
    torch.testing.assert_close(gradients, gradients[:1] * 4, rtol=0, atol=0, equal_nan=True)
    (unit,) = torch.autograd.grad(m.mixed_cross_entropy(own, y, perm, 0.3), own)
    if not math.isinf(up):  # else the entry of a label may be inf - inf
        torch.testing.assert_close(gradients[0], unit * up, equal_nan=True)


def test_two_scaled_backwards_and_double_backward(calls):
    z, y, perm = torch.randn(4, 9).double(), torch.arange(4), torch.arange(4).flip(0)
    for _ in range(2):  # with and without a gradient from the forward
        own = z.clone().requires_grad_()
        loss = m.mixed_cross_entropy(own, y, perm, 0.3)
        want = 0.5 * torch.autograd.grad(m.reference.mixed_cross_entropy(own, y, perm, 0.3), own)[0]
        for _ in range(2):
            torch.testing.assert_close(
                torch.autograd.grad(0.5 * loss, own, retain_graph=True)[0], want
            )
    assert autograd._upstreams == {("cross_entropy", 9, torch.float64, "mean", True): (0.5, True)}
    assert torch.autograd.gradgradcheck(lambda t: 0.5 * m.mixed_cross_entropy(t, y, perm, 0.3), own)
