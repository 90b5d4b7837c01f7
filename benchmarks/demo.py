"""`make demo`: backends, speed, training on MNIST digits, and two pictures."""

from __future__ import annotations

from pathlib import Path

import torch

from mmix_fast import info

from . import datafile, plots, tables, training
from .clock import Clock
from .problems import cross_entropy, mix
from .runner import QUICK, run

PICTURES = Path(__file__).parents[1] / "build"  # ignored by git


def main() -> None:
    print(info.table())
    clock = Clock()
    makers = [
        maker
        for part in (mix, cross_entropy)
        for maker in part.makers(None, (torch.float32,), "cpu", True)
    ]
    speed = datafile.content(run("speed", makers, clock, QUICK), clock, None, True)
    tables.show(speed)
    print("\nTraining: 1,000 digits of MNIST, 3 seeds")
    rows = training.measure()
    PICTURES.mkdir(exist_ok=True)
    datafile.write(PICTURES / "speedup.png", plots.speedup([speed]))
    datafile.write(PICTURES / "test_nll.png", plots.test_nll(rows))
    print("pictures: build/speedup.png, build/test_nll.png")
