"""mixed_cross_entropy: values and gradients against F.cross_entropy, options and special values."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

import mmix_fast as m
from tests.support.cases import DTYPES, TOLERANCE, eager_loss

RUNS_ON_GPU = True


SHAPES = [(6, 11), (5, 4, 3), (33, 1000), (3, 9001)]


def in_grid(dtype, shape):
    # In float64, the emulator takes minutes for the exponentials of the longest rows.
    slow = dtype == torch.float64 and shape == SHAPES[-1]
    return pytest.param(dtype, shape, marks=[pytest.mark.deep] if slow else [])


@pytest.mark.parametrize(("dtype", "shape"), [in_grid(d, s) for d in DTYPES for s in SHAPES])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("inplace", [False, True])
def test_parity_grid(backend, shape, kind, dtype, inplace):
    rows = shape[:1] + shape[2:]
    perm, lam = torch.randperm(shape[0]), 0.3125  # has an exact value in every dtype
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
        want = eager_loss(z64, y64, y64[perm], lam, weight=w64, **kw)
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
    torch.testing.assert_close(got, eager_loss(z, y, b, 0.25))
    rows = m.mixed_cross_entropy(z, y, None, lam, target_b=b, reduction="none")
    torch.testing.assert_close(rows, eager_loss(z, y, b, lam, reduction="none"))
    w = torch.rand(5).double()
    rows = eager_loss(z, y, b, lam, reduction="none", weight=w)
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
    torch.testing.assert_close(got, eager_loss(capped, y, y[perm], 0.3) + extra)


def test_a_label_at_a_masked_class_under_softcap(backend):
    """A logit of -inf is not capped, so the cap's derivative does not scale its gradient of -1."""
    z = torch.tensor([[-float("inf"), 0.0, 1.0, 3.0]]).requires_grad_()
    y = torch.tensor([0])
    loss = m.mixed_cross_entropy(z, y, None, 0.3, target_b=y, softcap=2.0)
    (gradient,) = torch.autograd.grad(loss, z)
    capped = 2 * torch.tanh(z.detach() / 2)
    capped[0, 0] = -float("inf")
    want = capped.softmax(1) * (1 - torch.tanh(z.detach() / 2) ** 2)
    want[0, 0] = -1
    assert loss == float("inf")
    torch.testing.assert_close(gradient, want)


def test_masked_nan_and_ignored_rows(backend):
    z = torch.randn(4, 3)
    z[0, 2] = -float("inf")  # a masked class that is no label
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


def test_all_labels_ignored_and_an_empty_batch(backend):
    z = torch.randn(3, 4, requires_grad=True)
    y, perm = torch.full((3,), -100), torch.arange(3)
    loss = m.mixed_cross_entropy(z, y, perm, 0.3)
    (grad,) = torch.autograd.grad(loss, z)
    assert loss.isnan() and (grad == 0).all()
    empty, none = torch.randn(0, 4), torch.zeros(0, dtype=torch.int64)
    assert m.mixed_cross_entropy(empty, none, none, 0.3).isnan()
    assert m.mixed_cross_entropy(empty, none, none, 0.3, reduction="sum") == 0


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_mean_over_weights_of_zero_is_nan(backend, label_smoothing):
    z, w = torch.randn(3, 4), torch.tensor([0.0, 1.0, 1.0, 1.0])
    perm = torch.arange(3)
    y, b = torch.zeros_like(perm), torch.ones_like(perm)
    kw = {"weight": w, "label_smoothing": label_smoothing}
    assert F.cross_entropy(z, y, **kw).isnan()
    for lam in (0.3, 1.0, torch.tensor([0.3, 1.0, 0.0])):
        assert m.mixed_cross_entropy(z, y, perm, lam, **kw).isnan()
    # Each label has its own divisor if λ is shared, and a label whose coefficient is 0 is absent.
    assert m.mixed_cross_entropy(z, y, None, 0.3, target_b=b, **kw).isnan()
    got = m.mixed_cross_entropy(z, y, None, 0.0, target_b=b, **kw)
    torch.testing.assert_close(got, F.cross_entropy(z, b, **kw))


def test_lam_one_drops_the_partner(backend):
    z = torch.tensor([[0.0, -float("inf")], [1.0, 2.0]])
    y, perm = torch.tensor([0, 1]), torch.tensor([1, 0])
    torch.testing.assert_close(m.mixed_cross_entropy(z, y, perm, 1.0), F.cross_entropy(z, y))
    b = torch.full((2,), -100)
    assert m.mixed_cross_entropy(z, y, None, 1.0, target_b=b).isfinite()


@pytest.mark.parametrize("layout", ["sliced", "transposed", "expanded"])
def test_sliced_transposed_and_expanded_logits(backend, layout):
    make = {
        "sliced": lambda: torch.randn(6, 9)[:, :5],
        "transposed": lambda: torch.randn(5, 6).t(),
        "expanded": lambda: torch.randn(1, 5).expand(6, 5),
    }
    z = make[layout]()
    y, perm = torch.randint(0, 5, (6,)), torch.randperm(6)
    for inplace in (False, True):
        a, b = z.detach().requires_grad_(), z.detach().clone().requires_grad_()
        want = torch.autograd.grad(eager_loss(b, y, y[perm], 0.3), b)
        got = m.mixed_cross_entropy(a, y, perm, 0.3, inplace_backward=inplace)
        torch.testing.assert_close(torch.autograd.grad(got, a), want)
        z = make[layout]()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("inplace", [False, True])
def test_every_option_at_once(backend, weighted, per_sample, reduction, inplace):
    """Labels for (B, C, d1) logits, target_b, weight, ignore_index, smoothing, z_loss, softcap."""
    z = (4 * torch.randn(5, 6, 3)).double()
    y, b = torch.randint(0, 6, (5, 3)), torch.randint(0, 6, (5, 3))
    y[0, 0] = b[1, 1] = y[2] = b[2] = -100
    w = torch.rand(6).double() if weighted else None
    lam = torch.rand(5).double() if per_sample else torch.tensor(0.3).double()
    kw = {"weight": w, "label_smoothing": 0.1, "reduction": reduction}
    leaf = z.clone().requires_grad_()
    capped = 3 * torch.tanh(leaf / 3)
    own = (lam.unsqueeze(1) if per_sample else lam).expand(5, 3)
    rows = own * F.cross_entropy(capped, y, **{**kw, "reduction": "none"})
    rows = rows + (1 - own) * F.cross_entropy(capped, b, **{**kw, "reduction": "none"})
    count = own * (y >= 0) + (1 - own) * (b >= 0)
    extra = count * 0.1 * capped.logsumexp(1).square()
    if reduction == "none":
        want = rows + extra
    elif reduction == "sum":
        want = rows.sum() + extra.sum()
    elif per_sample:
        ones = torch.ones(6).double() if w is None else w
        mass = own * ones[y.clamp(0)] * (y >= 0) + (1 - own) * ones[b.clamp(0)] * (b >= 0)
        want = rows.sum() / mass.sum() + extra.sum() / count.sum()
    else:
        want = eager_loss(capped, y, b, lam, **kw) + extra.sum() / count.sum()
    up = torch.randn_like(want)
    (grad,) = torch.autograd.grad(want, leaf, up)
    leaf = z.clone().requires_grad_()
    got = m.mixed_cross_entropy(
        leaf, y, None, lam, target_b=b, z_loss=0.1, softcap=3.0, inplace_backward=inplace, **kw
    )
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, leaf, up)[0], grad)


@pytest.mark.parametrize("lam", [-0.5, 0.0, 1.0, 1.5])
def test_any_lam_and_equal_partners(backend, lam):
    z, perm = torch.randn(6, 5).double().requires_grad_(), torch.randperm(6)
    for y in (torch.randint(0, 5, (6,)), torch.full((6,), 3)):
        want = eager_loss(z, y, y[perm], lam)
        got = m.mixed_cross_entropy(z, y, perm, lam)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.autograd.grad(got, z), torch.autograd.grad(want, z))


def test_nan_lam(backend):
    z, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    perm = torch.tensor([1, 2, 0])
    assert m.mixed_cross_entropy(z, y, perm, float("nan")).isnan()
    lam = torch.tensor([0.5, float("nan"), 0.5])
    rows = m.mixed_cross_entropy(z, y, perm, lam, reduction="none")
    assert rows.isnan().tolist() == [False, True, False]


def test_ignored_rows_may_hold_inf_or_nan(backend):
    inf = float("inf")
    for inplace in (False, True):
        for bad in (inf, -inf, float("nan")):
            z = torch.randn(4, 3)
            z[0] = bad
            z.requires_grad_()
            y, perm = torch.tensor([-100, 1, -100, 2]), torch.tensor([2, 3, 0, 1])
            got = m.mixed_cross_entropy(z, y, perm, 0.3, z_loss=0.1, inplace_backward=inplace)
            (grad,) = torch.autograd.grad(got, z)
            assert got.isfinite() and (grad[[0, 2]] == 0).all() and grad[[1, 3]].isfinite().all()


@pytest.mark.parametrize("classes", [5, 300])
@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_a_row_whose_only_label_has_a_coefficient_of_0_counts_for_nothing(backend, lam, classes):
    ignored, labels = torch.tensor([0, -100, -100, 3]), torch.tensor([1, 1, 2, 2])
    y, b = (labels, ignored) if lam == 0 else (ignored, labels)
    for each in (lam, torch.full((4,), lam)):
        z = torch.randn(4, classes)
        z[1], z[2] = float("nan"), -float("inf")
        z.requires_grad_()
        got = m.mixed_cross_entropy(z, y, None, each, target_b=b, reduction="none")
        counted = F.cross_entropy(z, ignored, reduction="none")  # 0 where ignored
        torch.testing.assert_close(got, counted)
        for up in (1.0, 0.5):
            (grad,) = torch.autograd.grad(up * got.sum(), z, retain_graph=True)
            assert (grad[1:3] == 0).all() and grad.isfinite().all() and (grad[0] != 0).all()


def test_zero_weight_and_probability_are_absent_at_a_masked_class(backend):
    z = torch.randn(3, 4)
    z[:, 3] = -float("inf")
    z.requires_grad_()
    perm = torch.tensor([1, 2, 0])
    t = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.2, 0.3, 0.5, 0.0]])
    got = m.mixed_cross_entropy(z, t, perm, 0.3)
    want = -((0.3 * t + 0.7 * t[perm])[:, :3] * z[:, :3].log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(got, want)
    (grad,) = torch.autograd.grad(got, z)
    assert grad.isfinite().all() and (grad[:, 3] == 0).all()
    w = torch.tensor([1.0, 2.0, 0.5, 0.0])
    y = torch.tensor([0, 1, 2])
    got = m.mixed_cross_entropy(z, y, perm, 0.3, weight=w, label_smoothing=0.1)
    rows = z[:, :3].log_softmax(1)
    smooth = -(rows * w[:3]).sum(1)
    want = 0.0
    for share, label in ((0.3, y), (0.7, y[perm])):
        hard = -(w[label] * rows.gather(1, label[:, None])[:, 0])
        want += share * (0.9 * hard + 0.1 / 4 * smooth).sum() / w[label].sum()
    torch.testing.assert_close(got, want)


def test_extreme_logits(backend):
    z = torch.tensor([[1e4, -1e4, 0.0], [3e38, 1.0, 2.0], [-3e38, -3e38, -3e38]])
    z.requires_grad_()
    y, perm = torch.tensor([0, 0, 1]), torch.arange(3)
    got = m.mixed_cross_entropy(z, y, perm, 0.3, reduction="none")
    torch.testing.assert_close(got, F.cross_entropy(z, y, reduction="none"))
    assert torch.autograd.grad(got.sum(), z)[0].isfinite().all()
