"""The numbers that the paper published, from published.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("published.json")
SETTING = ("dataset", "network", "method", "alpha")


@dataclass(frozen=True)
class Published:
    source: dict[str, str]
    notes: list[str]
    results: list[dict]
    robustness: list[dict]

    def result(self, config: dict) -> dict | None:
        """Of the same set, network, method and alpha: errors in percent, NLL, table and epochs."""
        return of_setting(self.results, config)

    def accuracy(self, config: dict, name: str) -> tuple[float, str] | None:
        """After the deformation or attack `name`, in percent, and the number of the table."""
        some = [row for row in self.robustness if name in row["accuracy"]]
        found = of_setting(some, config)
        return found and (found["accuracy"][name], found["table"])


def of_setting(rows: list[dict], config: dict) -> dict | None:
    return next((row for row in rows if all(row[key] == config[key] for key in SETTING)), None)


def as_error(row: dict) -> dict:
    """Table 3 prints accuracies; the others, and our runs, have errors."""
    errors = {
        key.replace("accuracy", "error"): round(100 - value, 2)
        for key, value in row.items()
        if key.endswith("accuracy")
    }
    return row | errors


def read() -> Published:
    data = json.loads(FILE.read_text())
    results = [as_error(row) for row in data["results"]]
    return Published(data["source"], data["notes"], results, data["robustness"])
