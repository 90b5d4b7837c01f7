"""A run's folder: config.json, log.csv, checkpoint.pt and, at the end, result.json."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch

from ..datafile import write
from ..options import BadOption
from .settings import Config

COLUMNS = (
    "epoch",
    "lr",
    "train_loss",
    "train_accuracy",
    "test_nll",
    "test_error",
    "test_top5_error",
    "seconds",
)


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def log(self) -> Path:
        return self.path / "log.csv"

    def create(self, config: Config, state: dict) -> None:
        try:
            self.path.mkdir(parents=True)
        except OSError as error:
            raise BadOption(
                f"--out must be where folders can be made, but {self.path}: {error.strerror}"
            ) from None
        write(self.path / "config.json", json.dumps(config.as_json(), indent=2) + "\n")
        write(self.log, ",".join(COLUMNS) + "\n")
        self.save(config, 0, state)

    def save(self, config: Config, epoch: int, state: dict) -> None:
        """`epoch`: how many are done. The old checkpoint stays whole until the new one is."""
        file = io.BytesIO()
        torch.save({"config": config.as_json(), "epoch": epoch, **state}, file)
        write(self.checkpoint, file.getvalue())

    def read(self, config: Config, device: torch.device) -> dict:
        """The checkpoint, checked; everything else is refused."""
        if not self.checkpoint.is_file():
            raise BadOption(f"--resume needs {self.checkpoint}, which is not there")
        try:
            # weights_only: a checkpoint that someone passed on must not run code.
            state = torch.load(self.checkpoint, map_location=device, weights_only=True)
            found = {key: state[key] for key in ("config", "epoch", "model", "optimizer", "scaler")}
        except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError):
            raise BadOption(
                f"{self.checkpoint} is damaged, or is no checkpoint of this command: delete "
                f"{self.path} and train anew"
            ) from None
        here, there = config.as_json(), found["config"]
        differing = [key for key in here if there.get(key) != here[key]]
        if differing:
            said = ", ".join(f"{key} {there.get(key)} there, {here[key]} here" for key in differing)
            raise BadOption(f"{self.checkpoint} is of a run with other options: {said}")
        self._check_log(found["epoch"])
        return found

    def _lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.is_file() else []

    def _check_log(self, epochs: int) -> None:
        lines = self._lines()
        numbers = [line.partition(",")[0] for line in lines[1 : epochs + 1]]
        if lines[:1] != [",".join(COLUMNS)] or numbers != [str(n + 1) for n in range(epochs)]:
            raise BadOption(
                f"{self.log} must have a line for each of the {epochs} epochs of the checkpoint: "
                f"delete {self.path} and train anew"
            )

    def cut_log(self, epochs: int) -> None:
        """Drops what was logged after the checkpoint: it will be trained, and logged, again."""
        write(self.log, "".join(line + "\n" for line in self._lines()[: epochs + 1]))

    def append(self, row: dict[str, float | None]) -> None:
        """Before the epoch's checkpoint: then no epoch of a checkpoint lacks its line."""
        with open(self.log, "a", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
            file.flush()
            os.fsync(file.fileno())

    def last(self) -> dict[str, float | None]:
        """The log's last line."""
        *_, row = csv.DictReader(self._lines())
        return {key: float(value) if value else None for key, value in row.items()}

    def finish(self, config: Config, row: dict, robustness: dict[str, float] | None) -> None:
        """The last epoch's result: the best epoch's would be chosen on the test set."""
        numbers = {key: row[key] for key in ("test_error", "test_nll", "test_top5_error")}
        result = {"config": config.as_json(), **numbers, "robustness": robustness}
        write(self.path / "result.json", json.dumps(result, indent=2) + "\n")
