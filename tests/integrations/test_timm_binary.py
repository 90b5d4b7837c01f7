"""BinaryCrossEntropy: against F.binary_cross_entropy_with_logits, and (deep) against timm's own."""

import itertools

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("numpy")

from mmix_fast.integrations.timm import BinaryCrossEntropy

B, C = 6, 5
bce = F.binary_cross_entropy_with_logits
OPTIONS = {
    "plain": {},
    "not smoothed": {"smoothing": 0.0},
    "threshold": {"target_threshold": 0.2},
    "sum of classes": {"sum_classes": True, "reduction": "sum"},
    "sum": {"reduction": "sum"},
    "rows": {"reduction": "none"},
    "weights": {"weight": torch.rand(C), "pos_weight": torch.rand(C) + 0.5},
    "one pos_weight": {"pos_weight": 3.0},
    "smooth_dense": {"smooth_dense": True, "smoothing": 0.3},
}
TARGETS = {
    "labels": lambda: torch.randint(0, C, (B,)),
    "column of floats": lambda: torch.randint(0, C, (B, 1)) + 0.5,
    "soft": lambda: torch.rand(B, C),
    "bool": lambda: torch.rand(B, C) > 0.5,
    "uint8": lambda: torch.randint(0, 2, (B, C), dtype=torch.uint8),
    "int64": lambda: torch.randint(0, 2, (B, C)),
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def by_hand(
    x,
    target,
    smoothing=0.1,
    target_threshold=None,
    weight=None,
    reduction="mean",
    sum_classes=False,
    pos_weight=None,
    smooth_dense=False,
):
    if target.shape != x.shape:
        hot = F.one_hot(target.long().flatten(), x.shape[-1])
        target = hot.to(x.dtype) * (1 - smoothing) + smoothing / x.shape[-1]
    else:
        target = target.to(x.dtype)
        if smooth_dense:
            target = target * (1 - smoothing) + smoothing / 2
    if target_threshold is not None:
        target = (target > target_threshold).to(x.dtype)
    pos_weight = None if pos_weight is None else torch.as_tensor(pos_weight, dtype=x.dtype)
    weight = None if weight is None else weight.to(x.dtype)
    elements = bce(x, target, weight, pos_weight=pos_weight, reduction="none")
    if sum_classes:
        return elements.sum(-1).mean()
    return elements if reduction == "none" else getattr(elements, reduction)()


def check(got, z, want):
    """The loss of z and its gradient, against a function of float64 logits."""
    wide = z.detach().double().requires_grad_()
    expected = want(wide)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    (gradient,), (wanted,) = (
        torch.autograd.grad(loss.sum(), x) for loss, x in ((got, z), (expected, wide))
    )
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=1e-6)


@every_option
@pytest.mark.parametrize("targets", TARGETS)
def test_every_option_and_kind_of_target(backend, options, targets):
    z, target = torch.randn(B, C, requires_grad=True), TARGETS[targets]()
    got = BinaryCrossEntropy(**options)(z, target)
    check(got, z, lambda z: by_hand(z, target, **options))


@every_option
@pytest.mark.parametrize("shape", [(2, 3, C), (C,), (2, 2, 2, C), (0, C)])
def test_dense_targets_of_every_shape(backend, options, shape):
    z, target = torch.randn(shape, requires_grad=True), torch.rand(shape)
    got = BinaryCrossEntropy(**options)(z, target)
    want = by_hand(z, target, **options)
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(backend, dtype):
    z, y = torch.randn(B, C).to(dtype).requires_grad_(), torch.randint(0, C, (B,))
    in_half_it_is_1 = torch.full((C,), 1.0004, dtype=torch.float64)
    for weight in (torch.rand(C), in_half_it_is_1, torch.tensor(2)):
        got = BinaryCrossEntropy(weight=weight, pos_weight=weight)(z, y)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        want = by_hand(z.detach().double(), y, weight=weight, pos_weight=weight)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


def test_state_and_bad_arguments():
    loss = BinaryCrossEntropy(weight=torch.rand(C), pos_weight=2.0)
    assert list(loss.state_dict()) == ["weight", "pos_weight"]
    assert loss.to("meta").weight.device.type == "meta"
    z, y = torch.randn(B, C), torch.zeros(B, dtype=torch.int64)
    for options, message in (
        ({"smoothing": 1.0}, r"smoothing must be in \[0, 1\), got 1.0"),
        ({"smoothing": -0.1}, r"smoothing must be in \[0, 1\], got -0.1"),
        ({"target_threshold": 1.5}, r"target_threshold must be in \[0, 1\], got 1.5"),
        ({"weight": torch.rand(B, 1)}, r"weight must be one number or have shape \(5,\), got fl"),
        ({"pos_weight": torch.rand(B, C)}, r"pos_weight must be one number or have shape \(5,\)"),
        ({"reduction": "some"}, "reduction must be one of none, mean, sum.*got 'some'"),
    ):
        with pytest.raises(ValueError, match=message):
            BinaryCrossEntropy(**options)(z, y)
    for target in (torch.zeros(B + 1), torch.zeros(B, C + 1)):
        with pytest.raises(
            ValueError, match=r"target must be dense of shape \(6, 5\), or hold one"
        ):
            BinaryCrossEntropy()(z, target)
    for label in (-100, C):
        with pytest.raises(IndexError, match=r"target must hold labels in \[0, 4\]"):
            BinaryCrossEntropy()(z, y + label)


@pytest.mark.deep
@pytest.mark.parametrize("targets", ["labels", "column of floats", "soft"])
def test_timms_loss(targets):
    timm_loss = pytest.importorskip("timm.loss")
    grid = {
        "smoothing": [0.0, 0.1],
        "target_threshold": [None, 0.15],
        "weight": [None, torch.rand(C)],
        "reduction": ["mean", "sum", "none"],
        "sum_classes": [False, True],
        "pos_weight": [None, 2.0, torch.rand(C), torch.rand(1, C)],
        "smooth_dense": [False, True],
    }
    for values in itertools.product(*grid.values()):
        options = dict(zip(grid, values, strict=True))
        z, target = torch.randn(B, C, requires_grad=True), TARGETS[targets]()
        ours, theirs = BinaryCrossEntropy(**options), timm_loss.BinaryCrossEntropy(**options)
        assert ours.reduction == theirs.reduction
        got, want = ours(z, target), theirs(z, target)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(
            torch.autograd.grad(got.sum(), z), torch.autograd.grad(want.sum(), z)
        )
        theirs.load_state_dict(ours.state_dict())


@pytest.mark.deep
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_a_loop_of_timm_with_sparse_targets(mode, multi_label):
    """timm's Mixup and loss, against ours with a MixedTarget in between."""
    import numpy as np

    timm_data, timm_loss = pytest.importorskip("timm.data"), pytest.importorskip("timm.loss")
    from mmix_fast.integrations.timm import Mixup

    y = torch.randint(0, 2, (8, C)) if multi_label else torch.randint(0, C, (8,))
    options = {"num_classes": C, "mode": mode, "multi_label": multi_label, "cutmix_alpha": 1.0}
    for seed, smooth in itertools.product(range(6), (False, True)):
        z, x = torch.randn(8, C, requires_grad=True), torch.rand(8, 3, 8, 8)
        losses = []
        for mixup, loss in (
            (Mixup(**options, soft_targets=False), BinaryCrossEntropy),
            (timm_data.Mixup(**options), timm_loss.BinaryCrossEntropy),
        ):
            np.random.seed(seed)
            target = mixup(x.clone(), y)[1]
            losses.append(loss(smooth_dense=smooth, pos_weight=1.5)(z, target))
        got, want = losses
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.autograd.grad(got, z), torch.autograd.grad(want, z))
