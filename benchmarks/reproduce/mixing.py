"""One training batch by any of the methods: its loss, its accuracy, and how it is mixed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import mmix_fast

from .networks import add_noise
from .settings import Config, Method


def box_of(lam: float, height: int, width: int, corner: Tensor) -> tuple[int, int, int, int]:
    """CutMix's box of the share 1 - lam around a point drawn from 0..1, cut at the edges.

    Yun et al., CutMix, ICCV 2019, section 3.1 and appendix A.
    """
    cut = (1 - lam) ** 0.5 / 2
    (y, x), sizes = corner.tolist(), (height, width)
    lows = [int(max(c - cut, 0) * size) for c, size in zip((y, x), sizes, strict=True)]
    highs = [int(min(c + cut, 1) * size) for c, size in zip((y, x), sizes, strict=True)]
    return lows[0], highs[0], lows[1], highs[1]


class Mixing:
    """Mixes the batches of a model, which may be compiled or in DistributedDataParallel.

    All draws come from `generator`, of the CPU: under DDP with the same seed on all ranks, so that
    they mix the same layer with the same λ. A sample's partner is of its own rank's shard.
    """

    def __init__(self, model: nn.Module, config: Config, method: Method) -> None:
        self.model, self.method, self.layers = model, method, config.layers
        self.generator = torch.Generator()
        self.alpha = config.alpha
        self.mixup: mmix_fast.ManifoldMixup | None = None
        if config.alpha is not None and config.layers:
            self.mixup = mmix_fast.ManifoldMixup(
                model, list(config.layers), config.alpha, generator=self.generator
            )

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the λ-weighted share of right answers."""
        if self.mixup is not None:
            logits = self.model(images)
            accuracy = self.mixup.accuracy(logits, labels)
            # The gradient takes the logits' memory: they are not read again.
            return self.mixup.loss(logits, labels, inplace_backward=True), accuracy
        mix = mmix_fast.Mix.identity(len(labels), labels.device)
        if self.alpha is not None:
            images, mix = self.cut(images)
        if self.method.noise and "" in self.layers:
            images = images + self.method.noise * torch.randn_like(images)
        logits = self.model(images)
        accuracy = mix.accuracy(logits, labels)
        return mix.cross_entropy(logits, labels, inplace_backward=True), accuracy

    def cut(self, images: Tensor) -> tuple[Tensor, mmix_fast.Mix]:
        """CutMix, in place, with one box for the batch."""
        perm, lam = mmix_fast.sample_mix(len(images), self.alpha, generator=self.generator)
        corner = torch.rand(2, generator=self.generator)
        box = box_of(lam.item(), *images.shape[2:], corner)  # drawn on the CPU: nothing waits
        images, area = mmix_fast.cutmix_(images, perm.to(images.device), box)
        return images, mmix_fast.Mix(perm, area).to(images.device)


def prepare(model: nn.Module, config: Config, method: Method) -> None:
    """What a method adds to the network itself, before it is compiled."""
    if method.noise:
        add_noise(model, tuple(name for name in config.layers if name), method.noise)
