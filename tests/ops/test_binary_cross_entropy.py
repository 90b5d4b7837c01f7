"""mixed_binary_cross_entropy: values and gradients against F.binary_cross_entropy_with_logits."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import mmix_fast as m
from tests.support.binary_loss import KINDS, check, expected, make_target, smoothed
from tests.support.cases import DTYPES
from tests.support.properties import property_test

RUNS_ON_GPU = True
INF, NAN = float("inf"), float("nan")
# Short rows, a map, rows longer than a piece of the CPU's and not a whole number of vectors.
SHAPES = [(6, 11), (5, 4, 3), (33, 200), (3, 4099)]


def q32(target, z, eps):
    """q in float32, each value rounded as SPEC section 1 says."""
    if target.dtype != torch.int64:
        return (1 - eps) * target.float() + eps / 2
    on = 1 - eps + eps / z.shape[1]
    return torch.where(F.one_hot(target, z.shape[1]) == 1, on, eps / z.shape[1]).float()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_parity_grid(backend, shape, kind, dtype):
    perm, lam = torch.randperm(shape[0]), 0.3125  # has an exact value in every dtype
    grid = product([0.0, 0.1], [False, True], ["mean", "batchmean", "sum", "none"], [False, True])
    for eps, weighted, reduction, inplace in grid:
        target = make_target(kind, shape, dtype)
        w, p = ((2 * torch.rand(shape[1])).to(dtype) if weighted else None for _ in range(2))
        z = (3 * torch.randn(shape)).to(dtype).requires_grad_()
        z64 = z.detach().double().requires_grad_()
        q = smoothed(target, shape, eps)
        want = expected(z64, q, q[perm], lam, w, p, reduction)
        got = m.mixed_binary_cross_entropy(
            z * 1 if inplace else z,
            target,
            perm,
            lam,
            weight=w,
            pos_weight=p,
            reduction=reduction,
            label_smoothing=eps,
            inplace_backward=inplace,
        )
        check(got, z, want, z64, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(6, 11), (5, 4, 3)])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("per_sample", [False, True])
def test_threshold_target_b_and_per_sample_lam(backend, shape, kind, threshold, per_sample):
    a, b = make_target(kind, shape), make_target(kind, shape)
    if kind == "labels":
        b.view(-1)[::2] = a.view(-1)[::2]  # the two masses add
    lam = torch.rand(shape[0]) if per_sample else torch.tensor(0.4)
    z = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    for eps in (0.0, 0.1):
        q, q_b = smoothed(a, shape, eps), smoothed(b, shape, eps)
        want = expected(z, q, q_b, lam.double(), threshold=threshold)
        got = m.mixed_binary_cross_entropy(
            z, a, None, lam.double(), target_b=b, label_smoothing=eps, target_threshold=threshold
        )
        check(got, z, want, z, torch.float64)


def test_the_threshold_is_strict_and_compares_the_mixed_target(backend):
    z, perm = torch.zeros(2, 3), torch.tensor([1, 0])
    y = torch.tensor([0, 1])
    for lam, above in ((0.5, 0.0), (0.5 + 2**-20, 1.0)):  # the own label's target is lam
        loss = m.mixed_binary_cross_entropy(
            z.requires_grad_(), y, perm, lam, target_threshold=0.5, reduction="sum"
        )
        (grad,) = torch.autograd.grad(loss, z)
        torch.testing.assert_close(grad[0], torch.tensor([0.5 - above, 0.5, 0.5]))
    # Equal labels: 0.5 + 0.5 is above.
    loss = m.mixed_binary_cross_entropy(
        z, y, None, 0.5, target_b=y, target_threshold=0.99, reduction="sum"
    )
    (grad,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(grad, 0.5 - F.one_hot(y, 3).float())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_thresholded_targets_are_the_same_bits_on_every_backend(backend, kind, eps):
    """At the threshold itself the last bit decides; the kernels must round as plain PyTorch."""
    shape = (8, 5)
    target = make_target(kind, shape)
    perm, lam = torch.randperm(8), torch.rand(8)
    z = torch.randn(shape, requires_grad=True)
    q = q32(target, z, eps)
    mixed = lam[:, None] * q + (1 - lam[:, None]) * q[perm]
    for threshold in mixed.flatten()[::7].tolist():
        for exact in (threshold, torch.tensor(threshold).nextafter(torch.tensor(0.0)).item()):
            loss = m.mixed_binary_cross_entropy(
                z, target, perm, lam, label_smoothing=eps, target_threshold=exact, reduction="sum"
            )
            (grad,) = torch.autograd.grad(loss, z)
            want = z.detach().sigmoid() - (mixed > exact).float()
            torch.testing.assert_close(grad, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_lam_zero_and_one_leave_the_other_side_out(backend, kind, lam, per_sample):
    shape = (4, 6)
    a, b = make_target(kind, shape), make_target(kind, shape)
    if kind == "probabilities":
        absent = b if lam == 1 else a
        absent[1], absent[2] = INF, NAN
    coef = torch.full((4,), lam) if per_sample else lam
    z = torch.randn(shape, requires_grad=True)
    present = smoothed(a if lam == 1 else b, shape, 0.0).float()
    want = F.binary_cross_entropy_with_logits(z, present)
    got = m.mixed_binary_cross_entropy(z, a, None, coef, target_b=b)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, z), torch.autograd.grad(want, z))


def test_absent_terms_at_infinite_logits(backend):
    z = torch.tensor([[-INF, INF, -INF, INF, NAN, 1.0]]).requires_grad_()
    t = torch.tensor([[0, 1, 1, 0, 1, 1]], dtype=torch.uint8)
    want = torch.tensor([[0.0, 0.0, INF, INF, NAN, F.softplus(torch.tensor(-1.0)).item()]])
    perm = torch.tensor([0])
    got = m.mixed_binary_cross_entropy(z, t, perm, 1.0, reduction="none")
    torch.testing.assert_close(got, want, equal_nan=True)
    (grad,) = torch.autograd.grad(got, z, torch.ones_like(got))
    slopes = torch.tensor([[0.0, 0.0, -1.0, 1.0, NAN, torch.tensor(1.0).sigmoid().item() - 1]])
    torch.testing.assert_close(grad, slopes, equal_nan=True)
    # A class of weight 0 is absent; without the others the loss is finite.
    for reduction in ("none", "sum"):
        w = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
        got = m.mixed_binary_cross_entropy(z, t, perm, 1.0, weight=w, reduction=reduction)
        torch.testing.assert_close(got.sum(), want[0, 5])
        (grad,) = torch.autograd.grad(got.sum(), z)
        assert (grad[0, :5] == 0).all() and grad[0, 5] != 0
    # pos_weight of 0: the positive term is absent.
    p = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    got = m.mixed_binary_cross_entropy(z, t, perm, 1.0, pos_weight=p, reduction="none")
    assert got[0, 2] == 0


def test_a_weight_of_zero_hides_a_target_that_is_not_finite(backend):
    z = torch.randn(2, 3, requires_grad=True)
    t = torch.rand(2, 3)
    t[0, 1], t[1, 1] = NAN, INF
    got = m.mixed_binary_cross_entropy(
        z, t, torch.tensor([1, 0]), 0.3, weight=torch.tensor([1.0, 0.0, 1.0])
    )
    (grad,) = torch.autograd.grad(got, z)
    assert got.isfinite() and grad.isfinite().all() and (grad[:, 1] == 0).all()


def test_nan_lam(backend):
    z, y, perm = torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    for threshold in (None, 0.5):
        got = m.mixed_binary_cross_entropy(z, y, perm, NAN, target_threshold=threshold)
        assert got.isnan()
    lam = torch.tensor([0.5, NAN, 0.5])
    for eps in (0.0, 0.1):
        rows = m.mixed_binary_cross_entropy(z, y, perm, lam, reduction="none", label_smoothing=eps)
        assert rows.isnan().all(1).tolist() == [False, True, False]
        assert rows[[0, 2]].isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_confident_logits_keep_their_relative_accuracy(backend, reduction):
    """log1p(exp(-z)) of a large z is small: log(1 + exp(-z)) would be 0."""
    for size in (8.0, 15.0, 20.0, 40.0, 80.0):
        z = torch.full((4, 300), -size)
        z[:, 7] = size
        y = torch.full((4,), 7)
        got = m.mixed_binary_cross_entropy(z, y, None, 0.5, target_b=y, reduction=reduction)
        want = torch.log1p(torch.exp(torch.tensor(-size, dtype=torch.float64)))
        torch.testing.assert_close(
            got.double(), want.expand(got.shape), rtol=1e-5, atol=0, msg=f"at {size}"
        )


def test_extreme_logits(backend):
    z = torch.tensor([[1e4, -1e4, 0.0, 3e38, -3e38, -0.0]]).requires_grad_()
    t = torch.tensor([[1, 1, 1, 0, 0, 0]], dtype=torch.uint8)
    got = m.mixed_binary_cross_entropy(z, t, torch.tensor([0]), 1.0, reduction="none")
    want = F.binary_cross_entropy_with_logits(z, t.float(), reduction="none")
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), z), torch.autograd.grad(want.sum(), z)
    )


@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum", "none"])
def test_empty_tensors(backend, reduction):
    none = torch.zeros(0, dtype=torch.int64)
    got = m.mixed_binary_cross_entropy(torch.randn(0, 4), none, none, 0.3, reduction=reduction)
    want = {"sum": 0.0, "none": torch.zeros(0, 4)}.get(reduction, NAN)
    torch.testing.assert_close(got, torch.as_tensor(want), equal_nan=True)
    z = torch.randn(3, 4, 0, requires_grad=True)
    t = torch.zeros(3, 4, 0, dtype=torch.bool)
    got = m.mixed_binary_cross_entropy(z, t, torch.arange(3), 0.3, reduction=reduction)
    assert torch.autograd.grad(got.sum(), z)[0].shape == z.shape


LAYOUTS = {
    "sliced": lambda: torch.randn(6, 90)[:, :70],
    "columns": lambda: torch.randn(6, 18)[:, ::2],
    "transposed": lambda: torch.randn(9, 6).t(),
    "expanded": lambda: torch.randn(1, 9).expand(6, 9),
    "channels_last": lambda: torch.randn(6, 9, 3, 2).contiguous(memory_format=torch.channels_last),
    "maps": lambda: torch.randn(6, 9, 5, 7),
    "sliced maps": lambda: torch.randn(6, 9, 5, 7)[::2, :, 1:, ::2],
    "one class": lambda: torch.randn(6, 1, 5).transpose(0, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inplace", [False, True])
def test_layouts(backend, layout, kind, inplace):
    z = LAYOUTS[layout]()
    shape = tuple(z.shape)
    target = make_target(kind, shape)
    if kind != "labels":  # with strides of its own
        target = target.transpose(0, -1).contiguous().transpose(0, -1)
    perm, w = torch.randperm(shape[0]), torch.rand(shape[1])
    for reduction, lam in (("mean", 0.3), ("none", torch.rand(shape[0]))):
        leaf = LAYOUTS[layout]().detach().requires_grad_()
        z64 = leaf.detach().double().requires_grad_()
        q = smoothed(target, shape, 0.1)
        want = expected(z64, q, q[perm], lam, w, None, reduction)
        got = m.mixed_binary_cross_entropy(
            leaf,
            target,
            perm,
            lam,
            weight=w,
            reduction=reduction,
            label_smoothing=0.1,
            inplace_backward=inplace,
        )
        check(got, leaf, want, z64, torch.float32)
        if reduction == "none" and backend != "reference":
            assert got.stride() == torch.empty_like(leaf).stride()


@settings(property_test, max_examples=25)
@given(st.data())
def test_permuting_the_batch_permutes_the_losses(data):
    """Equivariance, on the backend that serves CPU tensors."""
    batch, classes = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 40))
    kind = data.draw(st.sampled_from(KINDS))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    z, target = torch.randn(batch, classes), make_target(kind, (batch, classes))
    perm, order, lam = torch.randperm(batch), torch.randperm(batch), torch.rand(batch)
    options = {"reduction": "none", "label_smoothing": 0.1}
    rows = m.mixed_binary_cross_entropy(z, target, perm, lam, **options)
    # Sample i of the new batch is sample order[i]; its partner is perm[order[i]].
    place = order.argsort()
    moved = m.mixed_binary_cross_entropy(
        z[order], target[order], place[perm[order]], lam[order], **options
    )
    assert torch.equal(moved, rows[order])
