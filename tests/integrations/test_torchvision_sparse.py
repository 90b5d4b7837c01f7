"""torchvision's drop-ins with soft_targets=False: the same targets, sparse, and the same losses."""

import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F

import mmix_fast as m
from tests.support.recording import Seen

pytestmark = pytest.mark.deep
pytest.importorskip("torchvision")

from torchvision.transforms import v2  # noqa: E402

from mmix_fast.integrations.torchvision import CutMix, MixUp  # noqa: E402

B, C = 6, 5
LABELS = {
    "int64": lambda: torch.randint(0, C, (B,)),
    "uint8": lambda: torch.randint(0, C, (B,), dtype=torch.uint8),
    "one-hot": lambda: F.one_hot(torch.randint(0, C, (B,)), C),
    "multi-hot uint8": lambda: torch.randint(0, 2, (B, C), dtype=torch.uint8),
    "float16": lambda: torch.rand(B, C).half(),
    "float64": lambda: torch.rand(B, C, dtype=torch.float64),
}
KINDS = (MixUp, CutMix)
both = pytest.mark.parametrize("kind", KINDS)


def seeded(transform, *batch):
    torch.manual_seed(3)
    return transform(*batch)


@both
@pytest.mark.parametrize("labels", LABELS)
def test_dense_targets_and_losses_are_those_of_the_drop_in(kind, labels):
    images, y = torch.rand(B, 3, 9, 8), LABELS[labels]()
    want, dense = seeded(kind(num_classes=C), images, y)
    got, mixed = seeded(kind(num_classes=C, soft_targets=False), images, y)
    assert torch.equal(got, want) and type(mixed) is m.MixedTarget
    assert mixed.target is y  # not copied
    soft = mixed.soft()
    assert torch.equal(soft, dense) and soft.dtype == dense.dtype
    assert soft.dtype == (y.dtype if y.is_floating_point() else torch.float32)
    z = torch.randn(B, C, requires_grad=True)
    loss, want = m.mixed_cross_entropy(z, mixed), F.cross_entropy(z, dense.float())
    torch.testing.assert_close(loss, want, rtol=1e-3, atol=1e-3)
    gradients = (torch.autograd.grad(of, z)[0] for of in (loss, want))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
    loss = m.mixed_binary_cross_entropy(z, mixed)
    want = F.binary_cross_entropy_with_logits(z, dense.float())
    torch.testing.assert_close(loss, want, rtol=1e-3, atol=1e-3)


@both
def test_nested_samples_choices_and_repr(kind):
    batch = {"image": torch.rand(B, 3, 8, 8), "text": "x", "labels": torch.arange(B) % C}
    transform = pickle.loads(pickle.dumps(kind(num_classes=C, soft_targets=False)))
    out = v2.RandomChoice([transform])(batch)
    assert out["text"] == "x" and type(out["labels"]) is m.MixedTarget
    assert torch.equal(out["labels"].target, batch["labels"])
    assert "soft_targets=False" in repr(transform)
    theirs = inspect.signature(getattr(v2, kind.__name__)).parameters
    assert [*inspect.signature(kind).parameters] == [*theirs, "soft_targets"]


@both
def test_nothing_of_all_classes_is_built(kind):
    images, y, classes = torch.rand(4, 1, 4, 4), torch.arange(4), 1000
    for soft_targets in (True, False):
        with Seen() as seen:
            kind(num_classes=classes, soft_targets=soft_targets)(images, y)
        assert (max(seen.sizes) >= classes) == soft_targets


class Collate:
    """As torchvision documents: mix in collate_fn."""

    def __init__(self):
        self.mix = v2.RandomChoice([kind(num_classes=C, soft_targets=False) for kind in KINDS])

    def __call__(self, batch):
        torch.manual_seed(1)
        return self.mix(*torch.utils.data.default_collate(batch))


def test_in_the_workers_of_a_loader():
    data = [(torch.rand(3, 8, 8), i % C) for i in range(B)]
    ((images, mixed),) = torch.utils.data.DataLoader(data, B, num_workers=1, collate_fn=Collate())
    want_images, want = Collate()(data)
    assert torch.equal(images, want_images) and torch.equal(mixed.soft(), want.soft())
    m.mixed_cross_entropy(torch.randn(B, C, requires_grad=True), mixed).backward()
