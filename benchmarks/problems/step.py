"""A whole training step: plain training (ERM), hand-written Manifold Mixup, and ours."""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmix_fast

from ..models import PreActResNet18, SmallCNN
from ..problem import OURS, Goal, Implementation, Maker, Op, Problem
from ..runner import Effort
from ..verify import WrongResult
from .common import eager_mix, two_terms

GOAL_RATIO = 1.03  # times the ERM step
EFFORT = Effort(7, 15.0)


class NaiveMixup:
    """Manifold Mixup written by hand: hooks that mix out of place, and two cross-entropies."""

    def __init__(self, model: nn.Module, layers: tuple[str, ...]) -> None:
        self.layers, self.drawn = layers, ""
        self.forced: tuple[str, Tensor, Tensor] | None = None  # if set, used instead of a new draw
        model.register_forward_pre_hook(lambda module, args: self.before(args[0]))
        for name in layers:
            if name:
                model.get_submodule(name).register_forward_hook(self.after(name))

    def before(self, x: Tensor) -> Tensor:
        if self.forced:
            self.drawn, self.perm, self.lam = self.forced
        else:
            self.drawn = self.layers[int(torch.randint(len(self.layers), ()))]
            self.perm = torch.randperm(len(x), device=x.device)
            self.lam = torch.distributions.Beta(2.0, 2.0).sample().to(x.device)
        return eager_mix(x, self.perm, self.lam) if self.drawn == "" else x

    def after(self, name: str):
        def hook(module, args, h):
            return eager_mix(h, self.perm, self.lam) if self.drawn == name else h

        return hook

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        return two_terms(z, y, self.perm, self.lam)


def wide_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 10)
    )


CASES = {
    "demo CNN": (SmallCNN, ("", "blocks.0", "blocks.1"), (128, 1, 28, 28)),
    "MLP 784-4096-4096-10": (wide_mlp, ("", "1", "3"), (128, 784)),
    "PreActResNet-18": (PreActResNet18, ("", "layer1", "layer2"), (64, 3, 32, 32)),
}
QUICK_CASES = tuple(CASES)[:2]


def step(model: nn.Module, loss, y: Tensor) -> Op:
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def work(x: Tensor) -> None:
        loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()  # last, so that a step frees what it allocated

    return work


def sharing_weights(model: nn.Module) -> list[nn.Module]:
    """Three models for three sets of hooks, with the same weights: where weights lie in memory can
    change the time of a layer by 15 %."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return [model, *(copy.deepcopy(model, dict(shared)) for _ in range(2))]


def check_losses_agree(
    models: dict[str, nn.Module], by_hand: NaiveMixup, mixup, x: Tensor, y: Tensor
) -> None:
    """Checks at each layer that ours and the hand-written one give the same loss for a draw."""
    remaining = set(by_hand.layers)
    while remaining:
        ours = mixup.loss(models[OURS](x), y)
        by_hand.forced = (mixup.layer, mixup.mix.perm, mixup.mix.lam)
        same = by_hand.loss(models["naive"](x), y)
        if not torch.isclose(ours, same, rtol=1e-4):
            raise WrongResult(
                f"our loss at {mixup.layer!r} must equal the hand-written {same}, got {ours}"
            )
        remaining.discard(mixup.layer)
    by_hand.forced = None


def training_step(title: str, device: str) -> Problem:
    make, layers, shape = CASES[title]
    x, y = torch.randn(shape, device=device), torch.randint(0, 10, shape[:1], device=device)
    models = dict(zip((OURS, "naive", "ERM"), sharing_weights(make().to(device)), strict=True))
    by_hand = NaiveMixup(models["naive"], layers)
    mixup = mmix_fast.ManifoldMixup(models[OURS], layers)
    check_losses_agree(models, by_hand, mixup, x, y)
    losses = {OURS: mixup.loss, "naive": by_hand.loss, "ERM": F.cross_entropy}
    implementations = {
        name: Implementation(step(model, losses[name], y)) for name, model in models.items()
    }
    goals = (Goal("ERM", GOAL_RATIO),)
    return Problem(
        f"step of {title}", shape, x.dtype, x.clone, implementations, goals=goals, cold=False
    )


def makers(device: str, quick: bool) -> list[Maker]:
    return [partial(training_step, title, device) for title in (QUICK_CASES if quick else CASES)]
