"""The paper's claims on small data: `python -m benchmarks paper [part ...] [--full]`."""

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
    """Checks the name of a part on the command line."""
    if text not in PARTS:
        raise ArgumentTypeError(f"must be of {', '.join(PARTS)}, got {text!r}")
    return text


def main(parts: list[str], full: bool) -> None:
    """Measures the parts; each writes its data file."""
    torch.set_num_threads(1)  # with such small networks, a second thread costs more than it saves
    for part in parts or PARTS:
        print(f"\n{part}")
        PARTS[part](seeds=10 if full else 5)
