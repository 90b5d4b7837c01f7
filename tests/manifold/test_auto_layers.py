"""layers="auto" picks the input and the ends of the first stages, never a part of a skip block."""

import logging

import pytest
import torch
from torch import nn

import mmix_fast as m
from benchmarks.models import MLP, Encoder, PreActBlock, PreActResNet18
from mmix_fast.manifold.inplace import may_overwrite


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)
        self.fc1, self.fc2 = nn.Linear(8, 4), nn.Linear(4, 2)


class Wrapped(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def unit(n):
    return nn.Sequential(nn.Linear(n, n), nn.ReLU())


def with_norms(norm):
    """As timm's EfficientNet: its norms are numbered, and hold their activation."""

    def normed():
        made = norm()
        made.act = nn.ReLU()
        return made

    blocks = nn.Sequential(unit(4), unit(4), unit(4))
    return Wrapped(
        stem=nn.Conv2d(3, 4, 3), bn1=normed(), blocks=blocks, bn2=normed(), head=nn.Linear(4, 2)
    )


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


CASES = {
    "mlp": (MLP, ["", "1", "3"]),
    "units": (lambda: nn.Sequential(unit(4), unit(4), unit(4), nn.Linear(4, 2)), ["", "0", "1"]),
    "only units": (lambda: nn.Sequential(unit(4), unit(4)), ["", "0"]),
    "preact": (lambda: PreActResNet18(2), ["", "layer1", "layer2"]),
    "tokens": (Encoder, ["embed", "blocks.0", "blocks.1"]),
    "vit": (
        lambda: Wrapped(patch=nn.Conv2d(3, 8, 4), body=transformer(), head=nn.Linear(8, 2)),
        ["", "body.layers.0", "body.layers.1"],
    ),
    "lenet": (LeNet, ["", "conv1", "conv2"]),
    "features": (
        lambda: Wrapped(
            features=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()),
            classifier=nn.Linear(4, 2),
        ),
        ["", "features.1"],
    ),
    "one block": (lambda: Wrapped(stem=nn.Conv2d(3, 4, 3), block=PreActBlock(4, 4, 1)), [""]),
    "linear": (lambda: nn.Linear(4, 2), [""]),
    "batch norms": (lambda: with_norms(lambda: nn.BatchNorm2d(4)), ["", "blocks.0", "blocks.1"]),
    "group norms": (lambda: with_norms(lambda: nn.GroupNorm(2, 4)), ["", "blocks.0", "blocks.1"]),
    "layer norms": (lambda: with_norms(lambda: nn.LayerNorm(4)), ["", "blocks.0", "blocks.1"]),
    "ddp": (lambda: Wrapped(module=MLP()), ["", "1", "3"]),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_that_auto_picks(name, caplog):
    make, want = CASES[name]
    with caplog.at_level(logging.INFO, "mmix_fast"), m.ManifoldMixup(make(), "auto") as mixup:
        assert list(mixup.layers) == want
    assert str(want) in caplog.text and str(want) in repr(mixup)


def test_layers_that_auto_mixes_in_place_give_the_gradients_of_out_of_place():
    """For each kind of layer that inplace="auto" mixes in place."""
    image, rows = torch.randn(4, 8, 6, 6), torch.randn(4, 5, 8)
    kinds = [
        (nn.Conv2d(8, 8, 3), image),
        (nn.ConvTranspose2d(8, 8, 3), image),
        (nn.BatchNorm2d(8), image),
        (nn.BatchNorm2d(8).eval(), image),
        (nn.GroupNorm(2, 8), image),
        (nn.InstanceNorm2d(8), image),
        (nn.MaxPool2d(2), image),
        (nn.MaxPool2d(1), image),
        (nn.AvgPool2d(2), image),
        (nn.AdaptiveAvgPool2d(1), image),
        (nn.AdaptiveAvgPool2d(6), image),
        (nn.GELU(), image),
        (nn.SiLU(), image),
        (nn.Linear(8, 8), rows),
        (nn.Linear(8, 8, bias=False), rows),
        (nn.LayerNorm(8), rows),
        (nn.RMSNorm(8), rows),
        (nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), rows),
        (nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True), rows),
        (nn.Sequential(nn.ReLU(), nn.Linear(8, 8)), rows),
    ]
    mix = m.Mix(torch.tensor([2, 0, 1, 3]), torch.tensor(0.3))
    for layer, x in kinds:
        assert may_overwrite(layer, x), layer
        grads = []
        for over in (mix.mix, mix.mix_):
            leaf = x.clone().requires_grad_()
            kept = leaf * 1
            before = kept.detach().clone()
            (over(layer(kept)) * 1).sin().sum().backward()
            assert torch.equal(kept, before), layer  # mixing the output leaves the input
            grads.append(leaf.grad)
        assert torch.equal(*grads), layer
    for layer in (
        nn.ReLU(),
        nn.Dropout(),
        nn.Identity(),
        nn.SiLU(True),
        nn.Sequential(),
        nn.Tanh(),
    ):
        assert not may_overwrite(layer, image)
