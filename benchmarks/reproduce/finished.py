"""Reads the folders of runs, and puts those that differ by their seed alone together."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from ..datafile import BadFile
from .data.files import listed

CONFIG = ("dataset", "network", "method", "alpha", "layers", "seed", "epochs")
RESULT = ("config", "test_error", "test_nll", "test_top5_error", "robustness")


def read_json(path: Path, keys: tuple[str, ...]) -> dict:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadFile(f"{path} must be the JSON file of a run, but is damaged ({error})") from None
    missing = [key for key in keys if not isinstance(data, dict) or key not in data]
    if missing:
        raise BadFile(f"{path} must be of a run, but lacks {listed(missing)}")
    return data


def read_log(path: Path) -> list[dict[str, float]]:
    """Test errors over epochs."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [{key: float(row[key]) for key in ("epoch", "test_error")} for row in rows]
    except (OSError, KeyError, TypeError, ValueError):
        raise BadFile(
            f"{path} must be the log of a run, with epoch and test_error in each line"
        ) from None


def read_runs(folder: Path) -> list[dict]:
    """config, log and, of those that are finished, the results of all runs in the folder."""
    if not folder.is_dir():
        raise BadFile(f"{folder} must be a folder of runs, but is not a folder")
    places = sorted(path.parent for path in folder.glob("*/config.json"))
    if not places:
        found = listed(path.name for path in folder.iterdir())
        raise BadFile(f"{folder} must hold folders of runs, each with config.json, but has {found}")
    runs = []
    for place in places:
        config = read_json(place / "config.json", CONFIG)
        run = {"name": place.name, "config": config, "log": read_log(place / "log.csv")}
        if (place / "result.json").exists():
            run |= read_json(place / "result.json", RESULT) | {"config": config}
        for other in runs:
            if other["config"] == config:
                raise BadFile(
                    f"{folder} must hold a run once, but {other['name']} and {place.name} "
                    f"have the same configuration and seed"
                )
        runs.append(run)
    return runs


def setting_of(run: dict) -> dict:
    """The configuration without its seed."""
    return {key: value for key, value in run["config"].items() if key != "seed"}


def groups(runs: list[dict]) -> list[list[dict]]:
    """Runs that differ by their seed alone, sorted by set, network, method and alpha."""
    found: list[list[dict]] = []
    for run in runs:
        same = [group for group in found if setting_of(group[0]) == setting_of(run)]
        if same:
            same[0].append(run)
        else:
            found.append([run])
    order = ("dataset", "network", "method", "alpha", "epochs")
    return sorted(found, key=lambda group: [str(group[0]["config"][key]) for key in order])
