"""A mean over class weights whose sum is 0: the loss is NaN, and so is its gradient, in every row
that has such a term. Rows without one get 0, as from F.cross_entropy."""

import pytest
import torch
import torch.nn.functional as F

import mmix_fast as m
from tests.support.cases import DTYPES

RUNS_ON_GPU = True
INF = float("inf")
IGNORED = -100
LIGHT, ROWS = 3, 8  # the class of weight 0, and the number of rows
# Own labels and partners: light, heavy or ignored.
OWN = torch.tensor([LIGHT, LIGHT, IGNORED, IGNORED, LIGHT, LIGHT, IGNORED, LIGHT])
PARTNER = torch.tensor([LIGHT, IGNORED, LIGHT, IGNORED, LIGHT, IGNORED, IGNORED, LIGHT])
HEAVY = torch.tensor([0, 1, IGNORED, IGNORED, LIGHT, 2, 4, 0])
NONE = torch.full((ROWS,), IGNORED)
SMALL = [(ROWS, 5), (2, 5, 4)]
SHAPES = [*SMALL, (ROWS, 300)]
SMOOTHING = [0.0, 0.1]


def class_weights(classes, dtype):
    weight = torch.linspace(0.5, 1.5, classes)
    weight[LIGHT] = 0
    return weight.to(dtype)


def make_logits(shape, dtype):
    z = 3 * torch.randn(shape)
    z[:, 4] = -INF  # a masked class has a gradient of NaN too
    return z.to(dtype)


def shaped(y, shape):
    return y.reshape(shape[:1] + shape[2:])


def per_row(grad):
    """(rows, classes) of a gradient of logits (B, C, ...)."""
    return grad.movedim(1, -1).reshape(ROWS, -1)


def gradients(z, y, perm, lam, upstream=1.0, **kw):
    """(loss, gradient), from a backward of its own and in place."""
    for inplace in (False, True):
        leaf = z.clone().requires_grad_()
        loss = m.mixed_cross_entropy(leaf, y, perm, lam, inplace_backward=inplace, **kw)
        (grad,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, upstream))
        yield loss, grad


def composed(z, y, b, lam, **kw):
    """The gradient of lam*CE(y) + (1-lam)*CE(b) by F.cross_entropy; absent terms are left out."""
    total = torch.zeros_like(z)
    for coef, label in ((lam, y), (1 - lam, b)):
        leaf = z.clone().requires_grad_()
        if coef != 0:
            total += torch.autograd.grad(coef * F.cross_entropy(leaf, label, **kw), leaf)[0]
    return total


@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize("label_smoothing", SMOOTHING)
@pytest.mark.parametrize("labels", ["both", "own", "partner", "ignored partner", "all ignored"])
def test_a_shared_lam_is_two_calls_of_pytorch(backend, shape, label_smoothing, labels):
    pairs = {
        "both": (OWN, PARTNER),
        "own": (OWN, HEAVY),
        "partner": (HEAVY, PARTNER),
        "ignored partner": (OWN, NONE),
        "all ignored": (NONE, NONE),
    }
    y, b = (shaped(label, shape) for label in pairs[labels])
    z = make_logits(shape, torch.float32)
    weight = class_weights(shape[1], torch.float32)
    if label_smoothing:  # the loss of a masked class with a share of the target is inf
        z = z.nan_to_num(neginf=-5)
    kw = {"weight": weight, "label_smoothing": label_smoothing}
    for lam, upstream in ((0.3, 1.0), (0.3, 0.0), (0.0, 0.5), (1.0, 1.0)):
        want = upstream * composed(z, y, b, lam, **kw)
        defined = (lam == 0 or labels == "partner") and (lam == 1 or labels == "own")
        for loss, got in gradients(z, y, None, lam, upstream, target_b=b, **kw):
            assert loss.isnan() == (not defined)
            torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("label_smoothing", SMOOTHING)
def test_permuted_labels_in_every_dtype(backend, shape, dtype, label_smoothing):
    y, perm = shaped(OWN, shape), torch.arange(shape[0]).roll(1)
    z = make_logits(shape, dtype)
    kw = {"weight": class_weights(shape[1], dtype), "label_smoothing": label_smoothing}
    counts = (y != IGNORED).reshape(-1), (y[perm] != IGNORED).reshape(-1)
    for lam, undefined in ((0.3, counts[0] | counts[1]), (0.0, counts[1]), (1.0, counts[0])):
        for loss, grad in gradients(z, y, perm, lam, **kw):
            assert loss.isnan()
            got = per_row(grad)
            assert got[undefined].isnan().all() and (got[~undefined] == 0).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("label_smoothing", SMOOTHING)
def test_a_lam_for_each_sample(backend, shape, label_smoothing):
    """One divisor for both terms. A term whose λ is 0 does not count."""
    z = make_logits(shape, torch.float32)
    y, b = shaped(OWN, shape), shaped(torch.where(PARTNER == LIGHT, LIGHT, HEAVY), shape)
    lam = torch.tensor([1.0, 1.0, 0.3, 1.0, 0.3, 1.0, 1.0, 0.0])
    own, other = OWN != IGNORED, b.reshape(-1) != IGNORED
    if len(shape) == 3:
        lam = torch.tensor([1.0, 0.0])
        b = shaped(torch.where(torch.arange(ROWS) < 4, HEAVY, PARTNER), shape)
        other = b.reshape(-1) != IGNORED
    each = lam.repeat_interleave(ROWS // shape[0])
    undefined = (own & (each != 0)) | (other & (each != 1))
    assert 0 < undefined.sum() < ROWS
    kw = {"weight": class_weights(shape[1], torch.float32), "label_smoothing": label_smoothing}
    for loss, grad in gradients(z, y, None, lam, target_b=b, **kw):
        assert loss.isnan()
        got = per_row(grad)
        assert got[undefined].isnan().all() and (got[~undefined] == 0).all()


@pytest.mark.parametrize("options", [{"z_loss": 0.1}, {"softcap": 3.0}], ids=str)
def test_other_options(backend, options):
    for shape in (SMALL[0], (ROWS, 1031)):
        weight = class_weights(shape[1], torch.float32)
        z = torch.randn(shape)
        for _, grad in gradients(z, OWN, None, 0.3, target_b=PARTNER, weight=weight, **options):
            undefined = (OWN != IGNORED) | (PARTNER != IGNORED)
            assert grad[undefined].isnan().all() and (grad[~undefined] == 0).all()


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("label_smoothing", SMOOTHING)
def test_without_a_mean_weights_of_zero_give_zeros(backend, reduction, label_smoothing):
    z, weight = torch.randn(ROWS, 5), class_weights(5, torch.float32)
    kw = {"weight": weight, "label_smoothing": label_smoothing, "reduction": reduction}
    for _, grad in gradients(z, OWN, None, 0.3, target_b=PARTNER, **kw):
        assert grad.isfinite().all()
        assert (grad == 0).all() or label_smoothing


@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_weights_that_are_all_zero(backend, kind):
    """A mean over probabilities divides by the number of rows: its gradient is 0, not NaN."""
    z, perm, zeros = torch.randn(ROWS, 5), torch.arange(ROWS).roll(1), torch.zeros(5)
    target = torch.arange(ROWS) % 5 if kind == "labels" else torch.rand(ROWS, 5)
    for label_smoothing in SMOOTHING:
        kw = {"weight": zeros, "label_smoothing": label_smoothing}
        want = composed(z, target, target[perm], 0.3, **kw)
        assert want.isnan().all() if kind == "labels" else (want == 0).all()
        for _, grad in gradients(z, target, perm, 0.3, **kw):
            torch.testing.assert_close(grad, want, equal_nan=True)
