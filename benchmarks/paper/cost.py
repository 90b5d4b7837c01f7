"""A training step of ERM, of hand-written Manifold Mixup and of ours, on the CPU."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmix_fast

from ..harness import interleave, peak_bytes, save
from ..training import SmallCNN

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from models import PreActResNet18

LIMIT = 1.03  # of the ERM step


def naive(h: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    return lam * h + (1 - lam) * h[perm]


class NaiveMixup:
    """What people write: hooks that mix with fresh tensors, and two cross-entropies."""

    def __init__(self, model: nn.Module, layers: tuple[str, ...]) -> None:
        self.layers, self.drawn = layers, ""
        model.register_forward_pre_hook(lambda module, args: self.before(args[0]))
        for name in layers:
            if name:
                model.get_submodule(name).register_forward_hook(self.after(name))

    def before(self, x: Tensor) -> Tensor:
        self.drawn = self.layers[int(torch.randint(len(self.layers), ()))]
        self.perm = torch.randperm(len(x))
        self.lam = torch.distributions.Beta(2.0, 2.0).sample()
        return naive(x, self.perm, self.lam) if self.drawn == "" else x

    def after(self, name: str):
        def hook(module, args, h):
            return naive(h, self.perm, self.lam) if self.drawn == name else h

        return hook

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        other = F.cross_entropy(z, y[self.perm])
        return self.lam * F.cross_entropy(z, y) + (1 - self.lam) * other


def wide_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 10)
    )


CASES = {
    "demo CNN": (SmallCNN, ("", "blocks.0", "blocks.1"), (128, 1, 28, 28)),
    "PreActResNet-18": (PreActResNet18, ("", "layer1", "layer2"), (64, 3, 32, 32)),
    "MLP 784-4096-4096-10": (wide_mlp, ("", "1", "3"), (128, 784)),
}


def step(model: nn.Module, loss, x: Tensor, y: Tensor):
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def work() -> None:
        loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()  # last: a step frees what it allocates, for peak_bytes

    return work


def sharing_weights(model: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Three, each for its own hooks: where weights lie in memory can cost a layer 15 %."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return model, copy.deepcopy(model, dict(shared)), copy.deepcopy(model, dict(shared))


def main(seeds: int = 5, cases=CASES) -> list[dict]:
    rows = []
    for title, (make, layers, shape) in cases.items():
        x, y = torch.randn(shape), torch.randint(0, 10, shape[:1])
        models = dict(zip(("ERM", "naive", "ours"), sharing_weights(make()), strict=True))
        losses = {"ERM": F.cross_entropy, "naive": NaiveMixup(models["naive"], layers).loss}
        losses["ours"] = mmix_fast.ManifoldMixup(models["ours"], layers).loss
        rivals = {name: step(model, losses[name], x, y) for name, model in models.items()}
        times = interleave(rivals, budget_s=15.0 * seeds)
        peaks = {name: peak_bytes(work) for name, work in rivals.items()}
        row = {"title": title, "rounds": len(times["ERM"]), "peak_bytes": peaks, "limit": LIMIT}
        row["ms"] = {name: round(1e3 * median(values), 2) for name, values in times.items()}
        row["ratio"] = {}
        for name in ("naive", "ours"):  # round by round: the machine's noise meets both
            ratios = [a / b for a, b in zip(times[name], times["ERM"], strict=True)]
            row["ratio"][name] = round(median(ratios), 4)
        verdict = "pass" if row["ratio"]["ours"] <= LIMIT else "MISS"
        print(f"{title:<22}{row['ms']} ms, over ERM {row['ratio']}, {peaks} bytes  {verdict}")
        rows.append(row)
    save("paper_cost", rows)
    return rows
