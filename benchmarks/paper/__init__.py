"""The paper's claims on data that is here: `python -m benchmarks paper [part ...] [--full]`."""

from __future__ import annotations

from argparse import ArgumentTypeError

import torch

from . import generalization, geometry

PARTS = {
    "generalization": generalization.errors,
    "ablation": generalization.ablation,
    "flattening": geometry.flattening,
    "robustness": geometry.robustness,
    "spiral": geometry.spiral,
}


def part(text: str) -> str:
    """One of the command line's."""
    if text not in PARTS:
        raise ArgumentTypeError(f"must be of {', '.join(PARTS)}, got {text!r}")
    return text


def main(parts: list[str], full: bool) -> None:
    """Each part writes a data file."""
    torch.set_num_threads(1)  # two on these small networks wait for each other more than they work
    for part in parts or PARTS:
        print(f"\n{part}")
        PARTS[part](seeds=10 if full else 5)
