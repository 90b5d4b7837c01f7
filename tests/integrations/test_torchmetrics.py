"""MixedAccuracy: the mean over samples, as a torchmetrics Metric."""

import copy
import pickle

import pytest
import torch

import mmix_fast as m

pytestmark = pytest.mark.deep
torchmetrics = pytest.importorskip("torchmetrics")

from torchmetrics.classification import MulticlassAccuracy  # noqa: E402

from mmix_fast.integrations.torchmetrics import MixedAccuracy  # noqa: E402

CLASSES = 7


def batches(*sizes, shape=(), per_sample=True):
    for size in sizes:
        y = torch.randint(0, CLASSES, (size, *shape))
        mix = m.sample_mix(size, 1.0, per_sample=per_sample)
        yield torch.randn(size, CLASSES, *shape), y, mix


def joined(some):
    """One batch of all: permutations shifted, λ of each sample."""
    logits, labels, mixes = zip(*some, strict=True)
    sizes = [len(y) for y in labels]
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    perm = torch.cat([mix.perm + start for mix, start in zip(mixes, starts, strict=True)])
    lam = torch.cat([mix.lam.expand(size) for mix, size in zip(mixes, sizes, strict=True)])
    return torch.cat(logits), torch.cat(labels), m.Mix(perm, lam)


@pytest.mark.parametrize("topk", [1, 3])
@pytest.mark.parametrize("shape", [(), (4, 5)], ids=["labels", "maps"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_batches_of_different_sizes_are_one_batch(topk, shape, per_sample):
    some = list(batches(5, 1, 16, shape=shape, per_sample=per_sample))
    metric = MixedAccuracy(topk=topk)
    for logits, y, mix in some:
        metric.update(logits, y, mix)
    logits, y, mix = joined(some)
    torch.testing.assert_close(metric.compute(), mix.accuracy(logits, y, topk))


@pytest.mark.parametrize("topk", [1, 3])
def test_without_a_mix_it_is_torchmetrics_accuracy(topk):
    ours, theirs = MixedAccuracy(topk), MulticlassAccuracy(CLASSES, topk, average="micro")
    for logits, y, mix in batches(5, 8, 3):
        ours.update(logits, y)
        theirs.update(logits, y)
        torch.testing.assert_close(ours.compute(), theirs.compute())
        unmixed = m.Mix(mix.perm, torch.ones(()))
        torch.testing.assert_close(ours(logits, y, unmixed), theirs(logits, y))


def test_forward_gives_the_batch_and_counts_it():
    metric, some = MixedAccuracy(), list(batches(6, 9))
    for logits, y, mix in some:
        torch.testing.assert_close(metric(logits, y, mix), mix.accuracy(logits, y))
    logits, y, mix = joined(some)
    torch.testing.assert_close(metric.compute(), mix.accuracy(logits, y))
    assert metric.total == 15 and metric.total.dtype == torch.int64
    metric.reset()
    assert metric.total == metric.correct == 0


def test_an_ignored_label_counts_and_is_never_correct():
    y = torch.tensor([0, -100, 1, 2])
    metric = MixedAccuracy()
    metric.update(torch.eye(3)[[0, 1, 1, 2]], y)
    assert metric.compute() == 0.75


def test_dense_targets_and_an_empty_batch():
    logits, y, mix = next(batches(6))
    metric = MixedAccuracy()
    metric.update(logits[:0], y[:0], m.Mix(mix.perm[:0], torch.ones(())))
    metric.update(logits[:0], y[:0])
    metric.update(logits, torch.nn.functional.one_hot(y, CLASSES).float(), mix)
    assert torch.equal(metric.compute(), mix.accuracy(logits, y)) and metric.total == 6


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_alone(copied):
    first, second = batches(6, 9)
    metric = MixedAccuracy(topk=2)
    metric.update(*first)
    for other in (copied(metric), metric.clone()):
        assert other.topk == 2 and torch.equal(other.compute(), metric.compute())
        other.update(*second)
        assert other.total == 15 and metric.total == 6
        logits, y, mix = joined([first, second])
        torch.testing.assert_close(other.compute(), mix.accuracy(logits, y, 2))


def test_processes_are_summed():
    """merge_state reduces as a sync between processes does."""
    first, second = batches(6, 9)
    one, two = MixedAccuracy(), MixedAccuracy()
    one.update(*first)
    two.update(*second)
    one.merge_state(two)
    logits, y, mix = joined([first, second])
    torch.testing.assert_close(one.compute(), mix.accuracy(logits, y))


def test_a_collection_with_other_metrics():
    logits, y, mix = next(batches(12))
    plain = MulticlassAccuracy(CLASSES, average="micro")
    metrics = {"top1": MixedAccuracy(), "top5": MixedAccuracy(topk=5), "plain": plain}
    collection = torchmetrics.MetricCollection(metrics)
    collection.update(logits, y, mix=mix)
    got = collection.compute()
    assert torch.equal(got["top1"], mix.accuracy(logits, y))
    assert torch.equal(got["top5"], mix.accuracy(logits, y, 5))
    assert got["plain"] == (logits.argmax(1) == y).float().mean()


def test_errors_change_nothing():
    for bad, kind in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(kind, match="topk must be"):
            MixedAccuracy(topk=bad)
    logits, y, mix = next(batches(6))
    metric = MixedAccuracy(topk=CLASSES + 1)
    with pytest.raises(ValueError, match=r"topk must be in \[1, 7\], got 8"):
        metric.update(logits, y, mix)
    with pytest.raises(ValueError, match="perm must be int64 of shape"):
        metric.update(logits[:5], y[:5], mix)
    assert metric.total == metric.correct == 0
