"""Backward of mixed_binary_cross_entropy, its memory, its errors, and what makes no graph."""

import pytest
import torch
import torch.nn.functional as F

import mmix_fast as m
from tests.support.cases import DTYPES, TOLERANCE

RUNS_ON_GPU = True
PERM, Y = torch.tensor([1, 2, 0]), torch.tensor([0, 1, 1])


def problem(dtype=torch.float32):
    z = torch.randn(6, 45).to(dtype)
    return z, torch.rand(6, 45) < 0.3, torch.randperm(6)


@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum", "none"])
def test_gradcheck(backend, reduction):
    z = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    y, t = torch.randint(0, 3, (4, 2)), torch.rand(4, 3, 2)
    perm, lam, w = torch.tensor([1, 2, 3, 0]), torch.rand(4).double(), torch.rand(3).double()
    options = {"reduction": reduction, "label_smoothing": 0.1, "weight": w, "pos_weight": w + 1}
    for target in (y, t, t > 0.5):

        def loss(z, target=target):
            return m.mixed_binary_cross_entropy(z, target, perm, lam, **options)

        assert torch.autograd.gradcheck(loss, z)
        assert torch.autograd.gradgradcheck(loss, z)


def test_inplace_backward(backend):
    if backend == "reference":
        pytest.skip("reference allocates a buffer of its own")
    z, t, perm = problem()
    z.requires_grad_()
    options = {"inplace_backward": True}
    h = z * 1
    loss = m.mixed_binary_cross_entropy(h, t, perm, 0.3, **options)
    (grad,) = torch.autograd.grad(loss, h)
    assert grad.data_ptr() == h.data_ptr()
    (want,) = torch.autograd.grad(m.mixed_binary_cross_entropy(z, t, perm, 0.3), z)
    assert torch.equal(grad, want)
    h = z * 1
    other = h.square().sum()
    loss = m.mixed_binary_cross_entropy(h, t, perm, 0.3, **options)
    loss.backward(retain_graph=True)
    for again in (other, loss):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            again.backward()
    loss = m.mixed_binary_cross_entropy(z * 1, t, perm, 0.3, **options)
    with pytest.raises(RuntimeError, match="mixed_binary_cross_entropy with inplace_backward=F"):
        torch.autograd.grad(loss, z, create_graph=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("up", [1.0, 2.0, 0.3, 0.0, -1e4])
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_upstream_of_any_value_is_rounded_once(backend, dtype, up, reduction):
    """The forward computes the gradient for an upstream of 1; for any other, it is recomputed."""
    z, t, perm = problem(dtype)
    z.requires_grad_()
    mixed = 0.3 * t.double() + 0.7 * t[perm].double()
    want = (z.detach().double().sigmoid() - mixed) * up / (6 if reduction == "batchmean" else 1)
    loss = m.mixed_binary_cross_entropy(z, t, perm, 0.3, reduction=reduction)
    upstream = torch.full_like(loss, up)
    for grad in (upstream, torch.tensor(up).to(loss.dtype).expand(loss.shape)):
        (got,) = torch.autograd.grad(loss, z, grad, retain_graph=True)
        bound = TOLERANCE[dtype] * want.abs() + 2e-7 * abs(up)
        assert ((got.double() - want).abs() <= bound.clamp(min=6e-8)).all()


@pytest.mark.parametrize("layout", ["expanded", "transposed", "channels_last"])
def test_strided_upstream(backend, layout):
    z = torch.randn(4, 5, 3, 2, requires_grad=True)
    y, perm = torch.randint(0, 5, (4, 3, 2)), torch.randperm(4)
    up = {
        "expanded": lambda: torch.rand(4, 1, 3, 1).expand(4, 5, 3, 2),
        "transposed": lambda: torch.randn(2, 3, 5, 4).permute(3, 2, 1, 0),
        "channels_last": lambda: torch.randn(4, 5, 3, 2).to(memory_format=torch.channels_last),
    }[layout]()
    q = F.one_hot(y, 5).movedim(-1, 1).float()
    for inplace in (False, True):
        leaf = z.detach().clone().requires_grad_()
        got = m.mixed_binary_cross_entropy(
            leaf, y, perm, 0.3, reduction="none", inplace_backward=inplace
        )
        (grad,) = torch.autograd.grad(got, leaf, up)
        want = up * (z.detach().sigmoid() - (0.3 * q + 0.7 * q[perm]))
        torch.testing.assert_close(grad, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_second_backward_gets_a_gradient_of_its_own(backend, dtype):
    z, t, perm = problem(dtype)
    loss = m.mixed_binary_cross_entropy(z.requires_grad_(), t, perm, 0.3)
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    kept = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(loss, z)
    assert torch.equal(second, kept) or backend == "reference"


def test_gradients_to_other_arguments_are_right_or_raise(backend):
    z, perm = torch.randn(3, 4), PERM
    t, w, p = (torch.rand(n, requires_grad=True) for n in ((3, 4), 4, 4))
    lam = torch.tensor(0.3, requires_grad=True)
    got = {
        "target": (t, lambda: m.mixed_binary_cross_entropy(z, t, perm, 0.3)),
        "weight": (w, lambda: m.mixed_binary_cross_entropy(z, t.detach(), perm, 0.3, weight=w)),
        "pos_weight": (
            p,
            lambda: m.mixed_binary_cross_entropy(z, t.detach(), perm, 0.3, pos_weight=p),
        ),
        "lam": (lam, lambda: m.mixed_binary_cross_entropy(z, t.detach(), perm, lam)),
    }
    mix = lambda t, lam: lam * t + (1 - lam) * t[perm]  # noqa: E731
    plain = {
        "target": lambda: F.binary_cross_entropy_with_logits(z, mix(t, 0.3)),
        "weight": lambda: (
            w * F.binary_cross_entropy_with_logits(z, mix(t.detach(), 0.3), reduction="none")
        ).mean(),
        "pos_weight": lambda: (p * mix(t.detach(), 0.3) * F.softplus(-z)).mean(),
        "lam": lambda: F.binary_cross_entropy_with_logits(z, mix(t.detach(), lam)),
    }
    for name, (leaf, call) in got.items():
        if backend == "reference":
            (want,) = torch.autograd.grad(plain[name](), leaf)
            torch.testing.assert_close(torch.autograd.grad(call(), leaf)[0], want)
        else:
            with pytest.raises(RuntimeError, match=f"it has no gradient for {name}"):
                call()


def test_targets_of_two_dtypes(backend):
    z, a, b = torch.randn(3, 4), torch.rand(3, 4) < 0.5, torch.rand(3, 4)
    want = m.mixed_binary_cross_entropy(z, a.float(), None, 0.3, target_b=b)
    for own in (a, a.to(torch.uint8), a.double()):
        got = m.mixed_binary_cross_entropy(z, own, None, 0.3, target_b=b)
        torch.testing.assert_close(got, want)


def test_autocast(backend):
    z, t, perm = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = m.mixed_binary_cross_entropy(z.bfloat16(), t, perm, 0.3)
    assert got.dtype == torch.float32


Z, HOT = torch.arange(6.0).reshape(3, 2), torch.ones(3, 2, dtype=torch.uint8)
ERRORS = [
    ({"logits": [1.0]}, TypeError, "logits must be a Tensor, got list"),
    ({"logits": Z[:, 0]}, ValueError, r"logits must have shape \(B, C, ...\)"),
    ({"target": [0, 1]}, TypeError, "target must be integer labels, or bool, uint8 or floating"),
    ({"target": Y.cfloat()}, TypeError, "target must be integer labels, or bool.*got complex64"),
    (
        {"target": HOT.long()},
        TypeError,
        r"target of the logits' shape must be bool, uint8 or floating, got int64 of shape \(3, 2\)",
    ),
    (
        {"target": HOT[:2]},
        ValueError,
        r"target must have shape \(3, 2\), or be integer labels of shape \(3,\), got uint8",
    ),
    ({"target": Y.bool()}, ValueError, r"target must have shape \(3, 2\), got bool of shape"),
    ({"target": Y.float()}, ValueError, r"target must have shape \(3, 2\), got float32 of shape"),
    ({"target": HOT.to("meta")}, ValueError, "target must be on cpu, got meta"),
    ({"target": Y + 1}, IndexError, r"target must hold labels in \[0, 1\], got 2"),
    ({"target": Y * -100}, IndexError, r"target must hold labels in \[0, 1\], got -100"),
    ({"perm": None}, ValueError, "exactly one of perm and target_b must be given, got neither"),
    ({"target_b": Y}, ValueError, "exactly one of perm and target_b must be given, got both"),
    ({"perm": None, "target_b": Y - 2}, IndexError, r"target_b must hold labels.*got -2"),
    ({"perm": None, "target_b": HOT}, TypeError, "target_b must be of target's kind, int64"),
    ({"perm": PERM * 0}, ValueError, "perm must be a permutation of 0..2"),
    ({"weight": [1.0]}, TypeError, r"weight must be float32 of shape \(2,\), got list"),
    ({"weight": torch.ones(3)}, ValueError, r"weight must be float32 of shape \(2,\), got float32"),
    ({"pos_weight": 2.0}, TypeError, r"pos_weight must be float32 of shape \(2,\), got float 2.0"),
    (
        {"pos_weight": torch.ones(1, 2)},
        ValueError,
        r"pos_weight must be float32 of shape \(2,\), got float32 of shape \(1, 2\)",
    ),
    ({"pos_weight": torch.ones(2).to("meta")}, ValueError, "pos_weight must be on cpu, got meta"),
    (
        {"reduction": "avg"},
        ValueError,
        "reduction must be one of none, mean, sum, batchmean, got 'avg'",
    ),
    ({"label_smoothing": 1.1}, ValueError, r"label_smoothing must be in \[0, 1\], got 1.1"),
    ({"target_threshold": 1.5}, ValueError, r"target_threshold must be in \[0, 1\], got 1.5"),
    ({"target_threshold": -0.5}, ValueError, r"target_threshold must be in \[0, 1\], got -0.5"),
    ({"target_threshold": "a"}, TypeError, "target_threshold must be a float, got str 'a'"),
    ({"lam": torch.rand(2)}, ValueError, r"lam must have shape \(\) or \(3,\)"),
    ({"lam": None}, TypeError, "lam must be a float or a floating tensor, got NoneType"),
]


@pytest.mark.on_cpu
@pytest.mark.parametrize("change, kind, message", ERRORS)
def test_errors(backend, change, kind, message):
    kw = {"logits": Z, "target": Y, "perm": PERM, "lam": 0.3, **change}
    with pytest.raises(kind, match=message):
        m.mixed_binary_cross_entropy(**kw)


@pytest.mark.on_cpu
def test_a_bad_label_leaves_the_logits_as_they_are(backend):
    z = torch.randn(3, 2, requires_grad=True)
    before = z.detach().clone()
    with pytest.raises(IndexError, match="target must hold labels"):
        m.mixed_binary_cross_entropy(z, Y + 5, PERM, 0.3, inplace_backward=True)
    assert torch.equal(z, before) and z._version == 0
