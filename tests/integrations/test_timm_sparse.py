"""timm's drop-ins with soft_targets=False: the same targets, sparse, and the same losses."""

import inspect
import pickle

import pytest
import torch

np = pytest.importorskip("numpy")

import mmix_fast as m  # noqa: E402
from mmix_fast.integrations.timm import (  # noqa: E402
    BinaryCrossEntropy,
    Mixup,
    SoftTargetCrossEntropy,
)
from tests.support.recording import Seen  # noqa: E402

C = 7
KINDS = {
    "mixup": {"mixup_alpha": 0.8},
    "cutmix": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0},
    "both": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 0.7},
    "never": {"prob": 0.0},
}
TARGETS = {
    "labels": (lambda: torch.randint(0, C, (8,)), False),
    "uint8 column": (lambda: torch.randint(0, C, (8, 1), dtype=torch.uint8), False),
    "multi-hot": (lambda: torch.randint(0, 2, (8, C)), True),
    "multi-label": (lambda: torch.rand(8, C, dtype=torch.float64), True),
}
CRITERIA = {
    "cross-entropy": SoftTargetCrossEntropy(),
    "binary": BinaryCrossEntropy(),
    "binary, smoothed again": BinaryCrossEntropy(smoothing=0.3, smooth_dense=True),
    "binary, threshold": BinaryCrossEntropy(target_threshold=0.21, sum_classes=True),
}


def drawn(x, y, seed=0, **options):
    np.random.seed(seed)
    return Mixup(num_classes=C, **options)(x.clone(), y)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dense_targets_are_those_of_the_drop_in(mode, kind, targets, dtype):
    make, multi_label = TARGETS[targets]
    x, y = torch.rand(8, 3, 9, 6, dtype=dtype), make()
    options = {**KINDS[kind], "mode": mode, "multi_label": multi_label}
    for seed in range(4):
        want, dense = drawn(x, y, seed, **options)
        got, mixed = drawn(x, y, seed, **options, soft_targets=False)
        assert torch.equal(got, want)
        assert type(mixed) is m.MixedTarget and len(mixed) == 8
        soft, per_sample = mixed.soft(), mode != "batch"
        assert torch.equal(soft, dense) and soft.dtype == dense.dtype
        assert soft.dtype == (dtype if per_sample else torch.float32)
        if multi_label:
            assert mixed.target is y


@pytest.mark.parametrize("mode", ["batch", "elem"])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_losses_equal_those_of_dense_targets(backend, mode, targets, criterion):
    make, multi_label = TARGETS[targets]
    x, y, loss = torch.rand(8, 3, 4, 4), make(), CRITERIA[criterion]
    z = torch.randn(8, C, requires_grad=True)
    options = {"mode": mode, "multi_label": multi_label}
    dense = drawn(x, y, **options)[1]
    mixed = drawn(x, y, **options, soft_targets=False)[1]
    got, want = loss(z, mixed), loss(z, dense)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, z), torch.autograd.grad(want, z))


def test_nothing_of_all_classes_is_built():
    x, y, classes = torch.rand(8, 6), torch.randint(0, 999, (8,)), 1000
    for soft_targets in (True, False):
        for mode in ("batch", "pair", "elem"):
            mixup = Mixup(num_classes=classes, mode=mode, soft_targets=soft_targets)
            with Seen() as seen:
                mixup(x, y)
            assert (max(seen.sizes) >= classes) == soft_targets


def test_timms_arguments_come_first():
    names = list(inspect.signature(Mixup).parameters)
    assert names[-2:] == ["multi_label", "soft_targets"]
    assert (
        inspect.signature(Mixup).parameters["soft_targets"].kind is inspect.Parameter.KEYWORD_ONLY
    )


def test_bad_labels_raise_in_the_loss():
    x, mixed = drawn(torch.rand(8, 4), torch.full((8,), C), soft_targets=False)
    with pytest.raises(IndexError, match=r"target must hold labels in \[0, 6\].*got 7"):
        SoftTargetCrossEntropy()(torch.randn(8, C), mixed)
    with pytest.raises(ValueError, match=r"logits must have the 7 classes of the MixedTarget"):
        SoftTargetCrossEntropy()(torch.randn(8, C + 1), mixed)
    with pytest.raises(ValueError, match="target must hold 8 labels"):
        drawn(x, torch.zeros(8, C), soft_targets=False)


def test_a_loss_of_ignored_labels():
    """The mean is over the labels that count; over dense targets it is over all rows."""
    z, y = torch.randn(8, C), torch.tensor([0, -100, 1, 2, 3, 4, 5, 6])
    mixed = drawn(torch.rand(8, 4), y, soft_targets=False)[1]
    dense = SoftTargetCrossEntropy()(z, mixed.soft())
    torch.testing.assert_close(SoftTargetCrossEntropy()(z, mixed), dense * 8 / 7)


class Collate:
    """Mixes a batch in a loader's worker."""

    def __init__(self):
        self.mixup = Mixup(num_classes=C, mode="elem", soft_targets=False)

    def __call__(self, batch):
        np.random.seed(3)
        return self.mixup(*torch.utils.data.default_collate(batch))


def test_in_the_workers_of_a_loader():
    data = [(torch.rand(5), i % C) for i in range(8)]
    ((x, mixed),) = torch.utils.data.DataLoader(data, 8, num_workers=1, collate_fn=Collate())
    want_x, want = Collate()(data)
    assert torch.equal(x, want_x) and torch.equal(mixed.soft(), want.soft())
    assert torch.equal(pickle.loads(pickle.dumps(mixed)).soft(), want.soft())
