"""The paper's claims on data that is here: `python -m benchmarks paper [part ...] [--full]`."""

from __future__ import annotations

import torch

from . import cost, generalization, geometry, plots

PARTS = {
    "generalization": generalization.errors,
    "ablation": generalization.ablation,
    "flattening": geometry.flattening,
    "robustness": geometry.robustness,
    "spiral": geometry.spiral,
    "cost": cost.main,
}


def main(parts: list[str], full: bool) -> None:
    """Each part writes a data file; pictures and the README are made from all data files there."""
    for part in parts or PARTS:
        print(f"\n{part}")
        # Two threads on the small networks wait for each other more than they work.
        torch.set_num_threads(2 if part == "cost" else 1)
        PARTS[part](seeds=10 if full else 5)
    plots.main()
