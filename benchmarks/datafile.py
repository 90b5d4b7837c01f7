"""Reads, checks and writes the data files: timings in pytest-benchmark's layout, and row files."""

from __future__ import annotations

import json
import os
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import torch

import mmix_fast

from .clock import Clock

RESULTS = Path(__file__).parent / "results"
SCHEMA = 3  # increase it when the layout of the records changes
# What is kept of the machine and the commit. No host name, kernel build, folder or branch, which
# would show whose machine it is.
MACHINE = ("machine", "system", "python_version", "python_implementation")
CPU = ("brand_raw", "count", "arch")
COMMIT = ("id", "time", "dirty")


class BadFile(ValueError):
    """The message says what the file should be, what it is, and what to do."""


def path_of(name: str, device: str = "cpu") -> Path:
    suffix = "" if device == "cpu" else f"_{torch.device(device).type}"
    return RESULTS / f"{name}{suffix}.json"


# pytest-benchmark is imported where it is used: a GPU image may lack it, and `make gpu` needs only
# the functions that write files.
def machine_info(clock: Clock, backend: str | None) -> dict:
    from pytest_benchmark.plugin import pytest_benchmark_generate_machine_info

    info_all = pytest_benchmark_generate_machine_info()
    info = {key: info_all[key] for key in MACHINE}
    info["cpu"] = {key: info_all["cpu"][key] for key in CPU if key in info_all["cpu"]}
    return info | {
        "device": str(clock.device),
        "device_name": clock.name(),
        "cache_bytes": clock.cache_bytes(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "mmix_fast": mmix_fast.__version__,
        "backend": backend or "dispatched",
    }


def content(run: dict, clock: Clock, backend: str | None, quick: bool) -> dict:
    """The data file of a run (what runner.run returns)."""
    from pytest_benchmark import __version__ as version
    from pytest_benchmark.utils import get_commit_info

    commit = get_commit_info("mmix_fast")
    return {
        "schema": SCHEMA,
        "machine_info": machine_info(clock, backend)
        | {"copy_gb_per_s": run["ceiling"], "busy_cpus": run["busy"], "quick": quick},
        "commit_info": {key: commit[key] for key in COMMIT},
        "datetime": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": version,
        "benchmarks": run["benchmarks"],
    }


def parse(path: Path) -> dict:
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise BadFile(f"{path} must be a data file, but: {error.strerror}") from None
    except ValueError as error:
        raise BadFile(f"{path} must be a JSON data file, but is damaged ({error})") from None
    records = data.get("benchmarks", data.get("rows")) if isinstance(data, dict) else None
    if not isinstance(records, list):
        raise BadFile(f"{path} must be a data file of python -m benchmarks, but is other JSON")
    return data


def read(path: Path) -> dict:
    data = parse(path)
    schema = data.get("schema", 1)
    if schema != SCHEMA:
        raise BadFile(
            f"{path} must be of schema {SCHEMA}, but is of schema {schema}: "
            f"measure again (python -m benchmarks {path.stem.partition('_cuda')[0]})"
        )
    try:
        for record in data["benchmarks"]:
            record["group"], record["params"]["implementation"], record["stats"]["median"]
            record["extra_info"]["ratio"]
        data["machine_info"]["copy_gb_per_s"]
    except (KeyError, TypeError) as error:
        raise BadFile(f"{path} must be a whole data file, but lacks {error}") from None
    return data


def read_rows(path: Path, keys: tuple[str, ...]) -> dict:
    """Reads a file of save_rows and checks that its rows, or the runs in them, have these keys."""
    data = parse(path)
    runs = [run for row in data.get("rows", []) for run in row.get("runs", [row])]
    if not runs or any(key not in run for run in runs for key in keys):
        raise BadFile(f"{path} must have rows with {', '.join(keys)}, but lacks some")
    return data


def check_writable(path: Path) -> None:
    """Raises, before a long measurement, if the path is not writable or would lose another file."""
    if path.suffix != ".json" or not path.parent.is_dir():
        raise BadFile(f"--json must name a .json file in a folder that exists, got {path}")
    if path.exists():
        parse(path)  # only a data file may be overwritten


def write(path: Path, content: str | bytes) -> None:
    """Replaces the file in one step, so that an interruption leaves the old one whole."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())  # else, after a power cut, the new name may hold nothing
    os.chmod(name, 0o644)  # mkstemp lets only the owner read
    os.replace(name, path)


def rounded(value):
    """Floats to five digits, more than any measurement here is good for, to keep files small."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def to_text(data: dict) -> str:
    """JSON with one record in each line, so that a diff shows the records that changed."""
    parts = []
    for key, value in data.items():
        text = json.dumps(value)
        if isinstance(value, list):
            text = "[\n" + ",\n".join(json.dumps(record) for record in value) + "\n]"
        parts.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write_json(path: Path, data: dict) -> None:
    write(path, to_text(rounded(data)))


def save_rows(name: str, rows: list[dict]) -> None:
    """Writes results that are not timings: training and the paper's claims."""
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    machine["capability"] = torch.backends.cpu.get_cpu_capability()
    write_json(path_of(name), {"machine": machine, "rows": rows})
