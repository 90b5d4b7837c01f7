"""The networks have the known sizes, and what a method adds acts in training only."""

import pytest
import torch
from torch import nn

from benchmarks.reproduce.mixing import prepare
from benchmarks.reproduce.networks import build, layer_names
from benchmarks.reproduce.settings import METHODS, NETWORKS
from tests.reproduce.running import config


@pytest.mark.parametrize(
    ("network", "classes", "count"),
    [
        # Those of the papers' tables, 11.2 M, 21.3 M and 36.5 M, to the last one: with classifiers
        # of 512 (or 640) features, and with the two parameters of each channel of the last norm.
        ("preactresnet18", 10, 11_172_170),
        ("preactresnet34", 10, 21_280_330),
        ("wideresnet28-10", 10, 36_479_194),
        ("preactresnet18", 100, 11_172_170 + 90 * 513),
        ("wideresnet28-10", 100, 36_479_194 + 90 * 641),
    ],
)
def test_numbers_of_parameters(network, classes, count):
    with torch.device("meta"):
        model = build(config(network=network, width=NETWORKS[network].width), classes)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(("dataset", "size"), [("cifar10", 32), ("tiny-imagenet", 64)])
@pytest.mark.parametrize(
    ("network", "sides"), [("preactresnet18", [32, 16, 8, 4]), ("wideresnet28-10", [32, 16, 8])]
)
def test_stages_have_the_same_sizes_for_both_sizes_of_images(dataset, size, network, sides):
    model = build(config(dataset=dataset, network=network), 10)
    found = []
    for name in model.stages:
        model.get_submodule(name).register_forward_hook(
            lambda module, given, output: found.append(output.shape[-1])
        )
    assert model(torch.randn(2, 3, size, size)).shape == (2, 10)
    assert found == sides


@pytest.mark.parametrize(
    ("method", "kind"),
    [("erm", nn.BatchNorm2d), ("group-norm", nn.GroupNorm)],
)
def test_norms(method, kind):
    model = build(config(method=method, width=48), 10)
    norms = [m for name, m in model.named_modules() if name.split(".")[-1].startswith("bn")]
    assert len(norms) == 17 and {type(m) for m in norms} == {kind}
    if kind is nn.GroupNorm:  # 32 groups, or the most that divides the channels
        assert {(m.num_channels, m.num_groups) for m in norms} == {
            (48, 16),
            (96, 32),
            (192, 32),
            (384, 32),
        }


@pytest.mark.parametrize("method", ["dropout", "hidden-noise", "erm"])
def test_dropout_and_noise_act_in_training_only(method):
    chosen = METHODS[method]
    run = config(method=method, layers=chosen.layers, width=4)
    model = build(run, 10)
    prepare(model, run, chosen)
    x = torch.randn(4, 3, 32, 32)
    same = {}
    for training in (True, False):
        model.train(training)
        same[training] = torch.equal(model(x), model(x))
    assert same == {True: method == "erm", False: True}


def test_noise_has_its_deviation_at_the_layers_named():
    method = METHODS["hidden-noise"]
    model = build(config(width=8), 10)
    clean = []
    hook = model.layer1.register_forward_hook(lambda m, x, out: clean.append(out))
    prepare(model, config(layers=("", "layer1")), method)  # noise on the input is Mixing's part
    noisy = []
    model.layer1.register_forward_hook(lambda m, x, out: noisy.append(out))
    model(torch.randn(16, 3, 32, 32))
    hook.remove()
    added = noisy[0] - clean[0]
    assert added.std().item() == pytest.approx(method.noise, rel=0.02)
    assert abs(added.mean().item()) < 0.01
    assert not model.layer2._forward_hooks and not model._forward_hooks


def test_every_layer_has_a_name():
    names = layer_names(config())
    assert {"", "conv1", "layer1", "layer4", "layer2.1", "linear"} <= set(names)
    assert "layer4" not in layer_names(config(network="wideresnet28-10"))
