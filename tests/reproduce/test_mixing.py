"""The loss of a batch by each method, against formulas in plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F

import mmix_fast
from benchmarks.problems.common import two_terms
from benchmarks.reproduce import mixing
from benchmarks.reproduce.networks import build
from benchmarks.reproduce.settings import METHODS
from tests.reproduce.running import config


def batch_of(name, seed=0, **changes):
    """The parts of one training batch by a method."""
    method = METHODS[name]
    run = config(method=name, alpha=method.alpha, layers=method.layers, **changes)
    torch.manual_seed(1)
    model = build(run, 10).train()
    mixing.prepare(model, run, method)
    mixed = mixing.Mixing(model, run, method)
    mixed.generator.manual_seed(seed)
    x, y = torch.randn(8, 3, 16, 16), torch.randint(0, 10, (8,))
    return mixed, model, x, y


@pytest.mark.parametrize("name", ["erm", "weight-decay", "group-norm"])
def test_without_mixing_the_loss_is_cross_entropy(name):
    mixed, model, x, y = batch_of(name)
    loss, accuracy = mixed.loss(x.clone(), y)
    logits = model(x)
    torch.testing.assert_close(loss, F.cross_entropy(logits, y))
    torch.testing.assert_close(accuracy, (logits.argmax(1) == y).float().mean())


@pytest.mark.parametrize("name", ["input-mixup", "manifold-mixup"])
def test_manifold_mixup_mixes_the_layers_of_the_method(name):
    seen = set()
    for seed in range(12):
        mixed, model, x, y = batch_of(name, seed)
        loss, accuracy = mixed.loss(x, y)
        layer, mix = mixed.mixup.layer, mixed.mixup.mix
        mixed.mixup.enabled = False
        logits = model.by_hand(x, layer, mix)
        torch.testing.assert_close(loss, two_terms(logits, y, mix.perm, mix.lam))
        torch.testing.assert_close(accuracy, mix.accuracy(logits, y))
        seen.add(layer)
        mixed.mixup.close()
    assert seen == set(METHODS[name].layers)


@pytest.mark.parametrize(
    ("lam", "corner", "box"),
    [
        (0.75, (0.5, 0.5), (5, 15, 4, 12)),  # a quarter of the area: half of each side
        (0.0, (0.5, 0.5), (0, 20, 0, 16)),
        (1.0, (0.5, 0.5), (10, 10, 8, 8)),
        (0.75, (0.0, 0.875), (0, 5, 10, 16)),  # cut at the top, and at the right
    ],
)
def test_boxes_of_cutmix(lam, corner, box):
    assert mixing.box_of(lam, 20, 16, torch.tensor(corner)) == box


def test_cutmix_pastes_a_box_and_weighs_by_area():
    seen = set()
    for seed in range(5):
        mixed, model, x, y = batch_of("cutmix", seed)
        draws = torch.Generator().manual_seed(seed)
        perm, lam = mmix_fast.sample_mix(8, 1.0, generator=draws)
        top, bottom, left, right = mixing.box_of(lam.item(), 16, 16, torch.rand(2, generator=draws))
        pasted = x.clone()
        pasted[..., top:bottom, left:right] = x[perm][..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / 256
        loss, accuracy = mixed.loss(x.clone(), y)
        logits = model(pasted)
        torch.testing.assert_close(loss, two_terms(logits, y, perm, torch.tensor(share)))
        mix = mmix_fast.Mix(perm, torch.tensor(share))
        torch.testing.assert_close(accuracy, mix.accuracy(logits, y))
        seen.add(share)
    assert len(seen) > 2 and min(seen) < 0.9


def test_input_noise_has_its_deviation():
    mixed, model, x, y = batch_of("input-noise")
    seen = []
    model.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    mixed.loss(x, y)
    added = seen[0] - x
    assert added.std().item() == pytest.approx(METHODS["input-noise"].noise, rel=0.05)
    mixed, model, x, y = batch_of("hidden-noise")
    model.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    mixed.loss(x, y)
    assert torch.equal(seen[1], x)
