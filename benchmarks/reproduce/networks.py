"""Builds the paper's networks."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

import torch
from torch import Tensor, nn

from ..models import PreActResNet
from .settings import NETWORKS, RECIPES, Config, method_of

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(gcd(32, channels), channels),
}


def build(config: Config, classes: int) -> PreActResNet:
    network = NETWORKS[config.network]
    method = method_of(config.dataset, config.network, config.method)
    return PreActResNet(
        network.depths,
        config.width,
        classes,
        network.stem,
        RECIPES[config.dataset].stride,
        norm=NORMS[method.norm],
        dropout=method.dropout,
    )


def layer_names(config: Config) -> list[str]:
    """Of all layers that can be mixed; "" is the input."""
    with torch.device("meta"):
        return [name for name, _ in build(config, 2).named_modules()]


def add_noise(model: nn.Module, layers: tuple[str, ...], deviation: float) -> None:
    """Adds Gaussian noise to the outputs of hidden layers, in training."""

    def noisy(module: nn.Module, _, output: Tensor) -> Tensor:
        return output + deviation * torch.randn_like(output) if module.training else output

    for name in layers:
        model.get_submodule(name).register_forward_hook(noisy)
