"""Gradients of the loss and of soft targets, for values of λ at which the code branches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mmix_fast as m
from tests.support.cases import DTYPES, TOLERANCE
from tests.support.properties import property_test
from tests.support.special_lam import (
    FINITE_LAMS,
    INF,
    LAMS,
    NAN,
    assert_same,
    combined,
    draw_lam,
)

RUNS_ON_GPU = True
IGNORED = -100
UPSTREAM = (1.0, 0.0, -0.0, 0.3, -2.0)


def soft(y, classes, eps, weight):
    """The weighted soft targets of labels; zero rows for ignored labels."""
    valid = (y != IGNORED).unsqueeze(1)
    hot = torch.nn.functional.one_hot(y.clamp(0), classes).double()
    return weight * ((1 - eps) * hot + eps / classes) * valid


def gradient(z, t):
    """The gradient of -sum(t * log_softmax(z)) for each row; 0 for rows whose targets are all 0."""
    whole = t.sum(1, keepdim=True) * z.softmax(1) - t
    return torch.where((t == 0).all(1, keepdim=True), 0, whole)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_the_gradient_of_the_loss(backend, reduction):
    """Equal partners, ignored labels, masked classes, weights and upstream gradients of 0."""

    @property_test
    @given(st.data())
    def check(data):
        dtype = data.draw(st.sampled_from(DTYPES), "dtype")
        classes = data.draw(st.sampled_from([1, 2, 5, 16, 67]), "classes")
        batch = data.draw(st.integers(1, 6), "batch")
        # There are few different labels, and perm may have fixed points, so partners can be equal.
        label = st.sampled_from([IGNORED, 0, 0, classes - 1])
        y = torch.tensor(data.draw(st.lists(label, min_size=batch, max_size=batch), "labels"))
        perm = torch.tensor(data.draw(st.permutations(range(batch)), "perm"))
        lam = draw_lam(data, batch, FINITE_LAMS)
        eps = data.draw(st.sampled_from([0.0, 0.1]), "label_smoothing")
        weight = torch.ones(classes)
        if data.draw(st.booleans(), "weighted"):
            weight = torch.rand(classes) + 0.5
            weight[0] = data.draw(st.sampled_from([0.0, 1.0]), "weight of class 0")
        weight = weight.to(dtype)
        z = (3 * torch.randn(batch, classes)).to(dtype)
        if classes > 2 and eps == 0 and data.draw(st.booleans(), "masked classes"):
            z[:, 1 : classes - 1 : 2] = -INF
        shape = (batch,) if reduction == "none" else ()
        count = batch if shape else 1
        ups = data.draw(st.lists(st.sampled_from(UPSTREAM), min_size=count, max_size=count), "ups")
        up = torch.tensor(ups).reshape(shape).to(dtype if dtype == torch.float64 else torch.float32)

        own = lam.to(up.dtype).double().expand(batch)
        other = (1 - lam.to(up.dtype)).double().expand(batch)
        q = soft(y, classes, eps, weight.double())
        want = gradient(z.double(), combined(own[:, None], q, other[:, None], q[perm]))
        hard = (weight.double()[y.clamp(0)] * (y != IGNORED)).double()
        whole = (own * hard + other * hard[perm]).sum() if lam.ndim else hard.sum()
        if reduction == "mean":
            if abs(whole) < 1e-3:
                return  # 0/0, or too few significant digits to compare
            want = want / whole
        want = up.double().reshape(-1, 1) * want

        for inplace in (False, True):
            leaf = z.clone().requires_grad_()
            kw = {"label_smoothing": eps, "reduction": reduction, "inplace_backward": inplace}
            loss = m.mixed_cross_entropy(leaf, y, perm, lam, weight=weight, **kw)
            (got,) = torch.autograd.grad(loss, leaf, up)
            tol = TOLERANCE[dtype] * max(1.0, float(want.abs().max()))
            torch.testing.assert_close(got.double(), want, rtol=TOLERANCE[dtype], atol=tol)

    check()


def test_a_nan_lam_reaches_its_own_row_alone(backend):
    z = torch.randn(4, 5, requires_grad=True)
    y, perm = torch.tensor([0, 1, 1, 4]), torch.tensor([1, 0, 3, 2])
    lam = torch.tensor([0.0, NAN, 1.0, 0.3])
    loss = m.mixed_cross_entropy(z, y, perm, lam, reduction="none")
    (grad,) = torch.autograd.grad(loss, z, torch.ones(4))
    assert loss.isnan().tolist() == [False, True, False, False]
    assert grad.isnan().any(1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_to_float_targets(dtype):
    """Of mix_targets and of the loss: a sum over two rows, rounded once."""
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    lam = torch.tensor(LAMS).to(acc)
    n = len(lam)
    perm, inverse = torch.arange(n).roll(2), torch.arange(n).roll(-2)
    t = torch.rand(n, 7).to(dtype).requires_grad_()
    g = torch.randn(n, 7, dtype=acc)
    g[1] = INF
    out = m.mix_targets(t, perm, lam, dtype=acc)
    want = combined(lam[:, None], g, (1 - lam)[inverse][:, None], g[inverse]).to(dtype)
    assert_same(torch.autograd.grad(out, t, g)[0], want)

    z = torch.randn(n, 7, dtype=acc)
    loss = m.mixed_cross_entropy(z, t, perm, lam, reduction="sum")
    logp = -z.log_softmax(1)
    want = combined(lam[:, None], logp, (1 - lam)[inverse][:, None], logp[inverse])
    (got,) = torch.autograd.grad(loss, t)
    if dtype in (torch.float16, torch.bfloat16):
        assert_same(got, want.to(dtype))
    torch.testing.assert_close(got, want.to(dtype), equal_nan=True)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("soft_targets", [False, True])
def test_the_gradient_of_the_loss_to_lam_at_zero_and_one(per_sample, soft_targets):
    z = torch.randn(4, 5, dtype=torch.float64)
    perm, y = torch.tensor([1, 2, 3, 0]), torch.tensor([0, 1, 1, 4])
    t = torch.rand(4, 5).double() if soft_targets else torch.nn.functional.one_hot(y, 5).double()
    each = -(t * z.log_softmax(1)).sum(1) + (t[perm] * z.log_softmax(1)).sum(1)
    for value in FINITE_LAMS:
        lam = torch.tensor([value, 0.0, 1.0, value] if per_sample else value).double()
        lam.requires_grad_()
        target = t if soft_targets else y
        loss = m.mixed_cross_entropy(z, target, perm, lam, reduction="sum")
        (got,) = torch.autograd.grad(loss, lam)
        torch.testing.assert_close(got, each if per_sample else each.sum())


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_diverged_logits_give_nan_also_where_all_labels_have_weight_0(backend, bad, soft, inplace):
    """As in PyTorch: a loss of 0 would hide them. The other rows keep their values."""
    for classes in (5, 300):
        z, perm = torch.randn(4, classes), torch.tensor([1, 0, 3, 2])
        right = z.clone()
        z[0, 2] = bad
        weight = torch.ones(classes)
        weight[:2] = 0
        y = torch.tensor([0, 1, 2, 3])
        target = torch.nn.functional.one_hot(y, classes).float() if soft else y
        for lam in (0.3, torch.tensor([0.3, 0.4, 1.0, 0.0])):
            options = {"weight": weight, "reduction": "none", "inplace_backward": inplace}
            x = z.clone().requires_grad_()
            rows = m.mixed_cross_entropy(x * 1, target, perm, lam, **options)
            (grad,) = torch.autograd.grad(rows.sum(), x)
            assert rows[0].isnan() and grad[0].isnan().all()
            want = m.mixed_cross_entropy(right, target, perm, lam, **options)
            torch.testing.assert_close(rows[1:], want[1:])
            assert rows[1] == 0 and (grad[1] == 0).all() and grad[2:].isfinite().all()


@pytest.mark.parametrize("lam", [0.3, 0.0, 1.0])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_targets_and_weights_of_exactly_0_have_a_gradient(lam, eps):
    z, y, perm = torch.randn(4, 5).double(), torch.tensor([0, 1, 1, 4]), torch.tensor([1, 0, 3, 2])
    z[:, 3] = -INF  # a masked class: its probability of 0 stays absent, in the gradient too
    hot = torch.nn.functional.one_hot(y, 5).double().requires_grad_()
    weight = torch.tensor([0.0, 1.0, 2.0, 0.0, 0.5]).double().requires_grad_()
    logp = z.log_softmax(1).masked_fill(z == -INF, 0)
    mixed = lam * hot + (1 - lam) * hot[perm]
    want = -(weight * ((1 - eps) * mixed + eps / 5) * logp).sum()
    for target, of in ((hot, (hot, weight)), (y, (weight,))):
        got = m.mixed_cross_entropy(
            z, target, perm, lam, weight=weight, reduction="sum", label_smoothing=eps
        )
        torch.testing.assert_close(got, want)
        for one, right in zip(
            torch.autograd.grad(got, of),
            torch.autograd.grad(want, of, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(one, right)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("lam", [0.3, 0.0, 1.0, [0.3, 1.0]])
def test_a_log_probability_that_overflows_does_not_leak(backend, lam, soft):
    """3e38 - -3e38 is inf in float32: the class has log-probability -inf at a finite logit."""
    lam = torch.tensor(lam) if isinstance(lam, list) else lam
    for classes in (5, 300):
        z, y = torch.randn(2, classes), torch.tensor([0, 0])
        z[0, :2] = torch.tensor([3e38, -3e38])
        target = torch.nn.functional.one_hot(y, classes).float() if soft else y
        x, wide = z.clone().requires_grad_(), z.double().requires_grad_()
        rows = m.mixed_cross_entropy(x * 1, target, torch.tensor([1, 0]), lam, reduction="none")
        want = torch.nn.functional.cross_entropy(wide, y, reduction="none")  # for any lam
        torch.testing.assert_close(rows, want.float())
        (got,), (right,) = (
            torch.autograd.grad(loss.sum(), at) for loss, at in ((rows, x), (want, wide))
        )
        torch.testing.assert_close(got, right.float())
