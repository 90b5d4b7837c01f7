"""Runs `python -m benchmarks reproduce` on small files, with narrow networks."""

import csv
from pathlib import Path

import torch

from benchmarks import __main__ as cli
from benchmarks.reproduce.settings import Config

NARROW = ("--width", "2", "--batch", "16")


def command(data: Path, out: Path, *words: str, dataset: str = "cifar10") -> list[str]:
    where = ["--data", str(data), "--out", str(out)]
    return ["reproduce", dataset, *where, *NARROW, *words]


def reproduce(data: Path, out: Path, *words: str, dataset: str = "cifar10") -> int:
    return cli.main(command(data, out, *words, dataset=dataset))


def log_of(folder: Path) -> list[dict[str, str]]:
    """The log without its times, which no two runs share."""
    with open(folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def checkpoint_of(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def tensors(value: object) -> list[torch.Tensor]:
    """All tensors in a checkpoint, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [t for part in parts for t in tensors(part)] if isinstance(value, dict | list) else []


def config(**changes: object) -> Config:
    plain = {
        "dataset": "cifar10",
        "network": "preactresnet18",
        "method": "erm",
        "alpha": None,
        "layers": (),
        "seed": 0,
        "epochs": 1200,
        "batch": 100,
        "lr": 0.1,
        "width": 2,
        "amp": "none",
        "train_images": 64,
        "test_images": 32,
    }
    return Config(**(plain | changes))
