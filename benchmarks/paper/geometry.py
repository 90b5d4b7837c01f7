"""Flattened representations, smooth decision boundaries, novel deformations and FGSM."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..datafile import save_rows
from ..perturb import DEFORMATIONS, Deformation, fgsm, warp
from .train import (
    ERM,
    INPUT,
    MANIFOLD,
    METHODS,
    best_rate,
    data,
    fit,
    network,
    summary,
    test,
    train,
)

SIDE = 28
COMPARED = (ERM, INPUT, MANIFOLD)


def flattening(seeds: int) -> None:
    """Singular values of the first hidden layer for each class (paper, section 3.1).

    All methods have the learning rate of ERM: a larger one makes the values larger by itself.
    """
    rows = []
    dataset, rate = data("mnist"), best_rate("mnist", ERM)
    for method in COMPARED:
        runs = []
        for seed in range(seeds):
            model = fit(dataset, method, rate, seed)
            with torch.no_grad():
                hidden = model[:2](dataset.x)
            values = []
            for label in range(10):
                h = hidden[dataset.y == label]
                values.append(
                    torch.linalg.svdvals(h) / math.sqrt(len(h))
                )  # independent of the number of samples
            least = min(len(v) for v in values)
            mean = torch.stack([v[:least] for v in values]).mean(0)
            runs.append({"largest": mean[0].item(), "rest": mean[1:].sum().item()})
        for key in ("largest", "rest"):
            print(f"{method.name:<16}{key:<9}%.3f ±%.3f" % summary([r[key] for r in runs]))
        rows.append({"method": method.name, "runs": runs})
    save_rows("paper_flattening", rows)


def deform(x: Tensor, deformation: Deformation, seed: int) -> Tensor:
    """Images, each under its own map, filled with black beyond the edges."""
    images = (x - DARK).reshape(-1, 1, SIDE, SIDE)
    return (warp(images, deformation.matrices(len(x), seed)) + DARK).flatten(1)


FGSM = (0.05, 0.1, 0.2)  # in units of the pixel range 0..1
DARK, BRIGHT, UNIT = -0.13 / 0.31, 0.87 / 0.31, 0.31  # pixels are (p - 0.13) / 0.31, p in 0..1


def robustness(seeds: int) -> None:
    dataset = data("mnist")
    rows = []
    for method in COMPARED:
        runs = []
        for seed in range(seeds):
            model = fit(dataset, method, best_rate("mnist", method), seed)
            inputs = {"clean": dataset.test_x}
            inputs |= {k: deform(dataset.test_x, d, seed) for k, d in DEFORMATIONS.items()}
            inputs |= {
                f"FGSM {e}": fgsm(model, dataset.test_x, dataset.test_y, e / UNIT, DARK, BRIGHT)
                for e in FGSM
            }
            runs.append({k: test(model, x, dataset.test_y)["error"] for k, x in inputs.items()})
        rows.append({"method": method.name, "runs": runs})
        for key in runs[0]:
            error, margin = summary([r[key] for r in runs])
            print(f"{method.name:<16}{key:<14}{error:>6.2f} ±{margin:.2f} %")
    save_rows("paper_robustness", rows)


def two_spirals(count: int) -> tuple[Tensor, Tensor]:
    turn = torch.rand(count).sqrt() * 3 * math.pi
    label = torch.arange(count) % 2
    angle = turn + math.pi * label
    points = torch.stack([angle.cos(), angle.sin()], 1) * (turn / (3 * math.pi)).unsqueeze(1)
    return points + 0.01 * torch.randn(count, 2), label


def spiral(seeds: int, cells: int = 40) -> None:
    """The 2-D spiral with a 2-D bottleneck, mixed at the bottleneck (paper, figure 1)."""
    torch.manual_seed(0)
    x, y = two_spirals(400)
    line = torch.linspace(-1.2, 1.2, cells)
    grid = torch.cartesian_prod(line, line)
    rows = []
    for method in METHODS:
        if method is MANIFOLD:
            method = type(method)(method.name, ("act3",), 2.0)
        method = replace(method, noise=min(method.noise, 0.05))  # the points lie in [-1, 1]
        torch.manual_seed(1)
        model = network(2, 2, method, (64, 64, 2, 64))
        model.act3 = nn.Identity()  # the bottleneck is linear: two ReLUs of width 2 often die
        train(model, method, x, y, 3e-3, steps=2000)
        end = [name for name, _ in model.named_children()].index("act3")
        with torch.no_grad():
            confidence = model(grid).softmax(1)[:, 1]
            hidden = model[: end + 1](x)
        low = ((confidence - 0.5).abs() < 0.4).float().mean().item()
        print(f"{method.name:<16}share of the plane at less than 90 % confidence: {low:.3f}")
        rows.append(
            {
                "method": method.name,
                "low_confidence": low,
                "confidence": [round(v, 2) for v in confidence.tolist()],
                "hidden": [[round(v, 3) for v in line] for line in hidden.T.tolist()],
                **test(model, x, y),
            }
        )
    rows[0]["points"] = [[round(v, 3) for v in line] for line in x.T.tolist()]
    rows[0]["labels"] = y.tolist()
    save_rows("paper_spiral", rows)
