"""The two functions of mixup-cifar10, against those of its train.py."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmix_fast

np = pytest.importorskip("numpy")

from mmix_fast.integrations import mixup_cifar10  # noqa: E402
from mmix_fast.integrations.mixup_cifar10 import mixup_criterion, mixup_data  # noqa: E402


def naive_data(x, y, alpha):
    lam = np.random.beta(alpha, alpha) if alpha > 0 else 1
    index = torch.randperm(len(x))
    return lam * x + (1 - lam) * x[index], y, y[index], lam


def naive_criterion(criterion, pred, y_a, y_b, lam):
    return lam * criterion(pred, y_a) + (1 - lam) * criterion(pred, y_b)


INPUTS = [torch.float32, torch.float64, torch.float16, torch.uint8, torch.int32]


@pytest.mark.parametrize("alpha", [1.0, 0.0, -1.0, np.float32(0.5)])
@pytest.mark.parametrize("dtype", INPUTS)
def test_mixup_data_equals_the_original(backend, dtype, alpha):
    x = torch.randint(0, 200, (6, 3, 4, 4)).to(dtype)
    targets = torch.randint(0, 3, (6,)), torch.randn(6, 2), torch.arange(6).byte()
    for seed, y in enumerate(targets):
        before = x.clone()
        np.random.seed(seed), torch.manual_seed(seed)
        want, want_a, want_b, want_lam = naive_data(x, y, alpha)
        np.random.seed(seed), torch.manual_seed(seed)
        got, y_a, y_b, lam = mixup_data(x, y, alpha, use_cuda=False)
        assert type(lam) is float and lam == want_lam
        assert torch.equal(y_a, want_a) and torch.equal(y_b, want_b)
        torch.testing.assert_close(got, want)
        assert torch.equal(x, before) and got.data_ptr() != x.data_ptr()
        assert (np.random.rand(), torch.rand(())) == after(seed, x, y, alpha)


def after(seed, x, y, alpha):
    np.random.seed(seed), torch.manual_seed(seed)
    naive_data(x, y, alpha)
    return np.random.rand(), torch.rand(())


def test_mixup_data_is_differentiable(backend):
    x = torch.randn(4, 3, requires_grad=True)
    for alpha in (1.0, 0.0):
        mixed, _, index, lam = mixup_data(x, torch.arange(4), alpha)
        (got,) = torch.autograd.grad(mixed.square().sum(), x)
        (want,) = torch.autograd.grad((lam * x + (1 - lam) * x[index]).square().sum(), x)
        torch.testing.assert_close(got, want)


class Focal(nn.CrossEntropyLoss):
    def forward(self, pred, target):
        return (1 - torch.exp(-super().forward(pred, target))) ** 2


LABELS = (torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 2, 2]))
SOFT = (torch.rand(4, 3), torch.rand(4, 3))
DENSE = (torch.randint(0, 3, (4, 5)), torch.randint(0, 3, (4, 5)))
# name -> (criterion, shape of logits, two targets, whether one pass over the logits serves)
CASES = {
    "labels": (nn.CrossEntropyLoss(), (4, 3), LABELS, True),
    "uint8": (nn.CrossEntropyLoss(), (4, 3), [y.byte() for y in LABELS], True),
    "function": (F.cross_entropy, (4, 3), LABELS, True),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), (4, 3), LABELS, True),
    "none": (nn.CrossEntropyLoss(reduction="none"), (4, 3), LABELS, True),
    "options": (
        nn.CrossEntropyLoss(torch.rand(3), ignore_index=2, label_smoothing=0.1),
        (4, 3),
        LABELS,
        True,
    ),
    "soft": (nn.CrossEntropyLoss(label_smoothing=0.1), (4, 3), SOFT, True),
    "pixels": (nn.CrossEntropyLoss(), (4, 3, 5), DENSE, True),
    "unbatched": (nn.CrossEntropyLoss(), (3,), (torch.tensor(1), torch.tensor(2)), False),
    "unbatched, soft": (nn.CrossEntropyLoss(), (3,), (SOFT[0][0], SOFT[1][0]), False),
    "labels and soft": (nn.CrossEntropyLoss(), (4, 3), (LABELS[0], SOFT[0]), False),
    "subclass": (Focal(), (4, 3), LABELS, False),
    "lambda": (lambda z, y: F.cross_entropy(z, y).sqrt(), (4, 3), LABELS, False),
    "regression": (nn.MSELoss(), (4, 3), SOFT, False),
    "binary": (nn.BCEWithLogitsLoss(), (4, 3), SOFT, False),
}


LAMS = [0.3, 0, 1.0, np.float32(0.3), torch.tensor(0.3), torch.tensor([0.3])]


@pytest.mark.parametrize("lam", LAMS)
@pytest.mark.parametrize("case", CASES)
def test_mixup_criterion_equals_the_original(backend, monkeypatch, case, lam):
    criterion, shape, (y_a, y_b), one_pass = CASES[case]
    one_pass = one_pass and not (isinstance(lam, torch.Tensor) and lam.ndim)
    passes = []

    def spy(*args, **kwargs):
        passes.append(1)
        return mmix_fast.mixed_cross_entropy(*args, **kwargs)

    monkeypatch.setattr(mixup_cifar10, "mixed_cross_entropy", spy)
    z = torch.randn(shape, requires_grad=True)
    want = naive_criterion(criterion, z, y_a, y_b, lam)
    got = mixup_criterion(criterion, z, y_a, y_b, lam)
    assert got.shape == want.shape and len(passes) == one_pass
    torch.testing.assert_close(got, want)
    (gradient,) = torch.autograd.grad(got.sum(), z)
    torch.testing.assert_close(gradient, torch.autograd.grad(want.sum(), z)[0])


def test_per_sample_lam():
    """A per-sample λ gives what the original's formula gives, with reduction="none" and "mean"."""
    z, lam = torch.randn(4, 3), torch.rand(4)
    for criterion in (nn.CrossEntropyLoss(reduction="none"), nn.CrossEntropyLoss()):
        want = naive_criterion(criterion, z, *LABELS, lam)
        torch.testing.assert_close(mixup_criterion(criterion, z, *LABELS, lam), want)
    want = naive_criterion(nn.CrossEntropyLoss(), z, *LABELS, torch.tensor(1))
    torch.testing.assert_close(
        mixup_criterion(nn.CrossEntropyLoss(), z, *LABELS, torch.tensor(1)), want
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_dtype_of_the_loss(dtype, autocast):
    z = torch.randn(4, 3, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        want = naive_criterion(nn.CrossEntropyLoss(), z, *LABELS, 0.3)
        got = mixup_criterion(nn.CrossEntropyLoss(), z, *LABELS, 0.3)
    torch.testing.assert_close(got, want)


def test_errors_are_those_of_the_criterion():
    z = torch.randn(4, 3)
    for y in (LABELS[0][:3], torch.rand(4)):
        with pytest.raises((ValueError, RuntimeError)):
            mixup_criterion(nn.CrossEntropyLoss(), z, y, y, 0.3)
    with pytest.raises(IndexError):
        mixup_criterion(nn.CrossEntropyLoss(), z, LABELS[0] + 1, LABELS[1], 0.3)
