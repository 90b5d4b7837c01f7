"""Schedules, methods and seeds are those of the paper and its authors' code."""

import pytest

from benchmarks.reproduce.settings import METHODS, NETWORKS, RECIPES, method_of, schedule_of
from tests.reproduce.running import config


def drops(changes):
    """The epochs (from 0) at which the learning rate changes, and its values."""
    run = config(**changes)
    rates = [run.rate(epoch) for epoch in range(run.epochs)]
    at = [k for k in range(1, run.epochs) if rates[k] != rates[k - 1]]
    return at, [rates[0]] + [rates[k] for k in at]


@pytest.mark.parametrize(
    ("changes", "at", "rates"),
    [
        ({}, [400, 800], [0.1, 0.01, 0.001]),
        ({"dataset": "svhn", "network": "preactresnet34"}, [400, 800], [0.1, 0.01, 0.001]),
        ({"network": "wideresnet28-10", "epochs": 400}, [200, 300], [0.1, 0.01, 0.001]),
        ({"dataset": "tiny-imagenet", "epochs": 2000}, [1000, 1500], [0.1, 0.01, 0.001]),
        ({"epochs": 12, "lr": 0.2}, [4, 8], [0.2, 0.02, 0.002]),
        ({"epochs": 4}, [2, 3], [0.1, 0.01, 0.001]),
        ({"epochs": 2}, [1], [0.1, 0.01]),
        ({"epochs": 1}, [], [0.1]),
    ],
)
def test_the_learning_rate_drops_where_the_paper_drops_it_in_proportion(changes, at, rates):
    found_at, found = drops(changes)
    assert found_at == at
    assert found == pytest.approx(rates, rel=1e-12)


def test_epochs_of_the_schedules():
    epochs = {(d, n): schedule_of(d, n).epochs for d in RECIPES for n in NETWORKS}
    assert {n: epochs["cifar100", n] for n in NETWORKS} == {
        "preactresnet18": 1200,
        "preactresnet34": 1200,
        "wideresnet28-10": 400,
    }
    assert {epochs["tiny-imagenet", n] for n in NETWORKS} == {2000}


@pytest.mark.parametrize(
    ("dataset", "network", "name", "layers", "alpha"),
    [
        ("cifar10", "preactresnet34", "manifold-mixup", ("", "layer1", "layer2"), 2.0),
        ("cifar10", "wideresnet28-10", "manifold-mixup", ("", "layer1"), 2.0),
        ("cifar10", "wideresnet28-10", "input-mixup", ("",), 1.0),
        ("cifar10", "wideresnet28-10", "hidden-noise", ("layer1", "layer2"), None),
        ("svhn", "preactresnet18", "input-mixup", ("",), 1.0),
        ("tiny-imagenet", "preactresnet18", "manifold-mixup", ("", "layer1", "layer2"), 0.2),
        ("tiny-imagenet", "wideresnet28-10", "manifold-mixup", ("", "layer1"), 0.2),
        ("tiny-imagenet", "preactresnet18", "input-mixup", ("",), 0.2),
        ("tiny-imagenet", "preactresnet18", "cutmix", (), 1.0),
    ],
)
def test_layers_and_alphas(dataset, network, name, layers, alpha):
    method = method_of(dataset, network, name)
    assert (method.layers, method.alpha) == (layers, alpha)


def test_each_regularizer_changes_one_thing():
    changed = {
        name: {key for key in vars(method) if vars(method)[key] != vars(METHODS["erm"])[key]}
        for name, method in METHODS.items()
    }
    assert changed == {
        "erm": set(),
        "input-mixup": {"layers", "alpha"},
        "manifold-mixup": {"layers", "alpha"},
        "cutmix": {"alpha"},
        "weight-decay": {"weight_decay"},
        "dropout": {"dropout"},
        "input-noise": {"layers", "noise"},
        "hidden-noise": {"layers", "noise"},
        "group-norm": {"norm"},
    }


def test_padding_and_flips():
    assert {name: (r.pad, r.flip, r.stride) for name, r in RECIPES.items()} == {
        "cifar10": (2, True, 1),
        "cifar100": (2, True, 1),
        "svhn": (2, False, 1),
        "tiny-imagenet": (4, True, 2),
    }


def test_each_purpose_epoch_and_run_has_a_seed_of_its_own():
    uses = [(e, p) for e in range(3) for p in ("order", "crops")] + [
        (1, "noise", r) for r in (0, 1)
    ]
    found = [config(seed=seed).seed_of(*use) for seed in (0, 1) for use in uses]
    assert len(set(found)) == len(found)
    assert config().seed_of(1, "order") == config(method="cutmix").seed_of(1, "order")
    assert all(0 <= seed < 2**63 for seed in found)
