"""Data of a tiny measurement, and data files as all commands write them."""

import copy
import re
from pathlib import Path

import pytest
import torch

from benchmarks import datafile, report, runner
from benchmarks.clock import Clock
from benchmarks.paper import report as paper
from tests.support.measuring import EFFORT, problem

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data():
    """The content of a data file, really measured."""
    done = runner.run("test", [problem], Clock(), EFFORT)
    return datafile.content(done, Clock(), None, True)


@pytest.fixture
def files(tmp_path, data, monkeypatch):
    """A repository root for the report, with every data file it reads."""
    results = tmp_path / "benchmarks/results"
    results.mkdir(parents=True)
    training = {"rows": [{"method": "ERM", "runs": [{"error": 4.0, "nll": 0.1}]}]}
    for name in ("mix", "cross_entropy", "losses", "scaling", "step", "linear", "sharded"):
        some = copy.deepcopy(data)
        for record in [r for r in some["benchmarks"] if r["params"]["cache"] == "warm"]:
            larger = copy.deepcopy(record)  # a curve needs two sizes
            larger["group"] += " larger"
            larger["params"]["shape"][0] *= 2
            some["benchmarks"].append(larger)
        datafile.write_json(results / f"{name}.json", some)
    datafile.write_json(results / "training.json", training)
    machine = {"torch": "2", "threads": 1, "capability": "AVX2"}
    run = {"error": 4.0, "nll": 0.1, "largest": 2.0, "rest": 1.0, "clean": 4.0}
    row = {"method": "ERM", "data": "digits", "rate": 0.1, "alpha": 1.0, "runs": [run, run]}
    spiral = {"method": "ERM", "confidence": [0, 1, 1, 0], "low_confidence": 0.2}
    spiral |= {"points": [[0.1, 0.2], [0.3, 0.4]], "labels": [0, 1], "error": 4.0, "nll": 0.1}
    spiral["hidden"] = spiral["points"]
    for part in paper.SECTIONS:
        some_rows = [spiral if part == "spiral" else row]
        datafile.write_json(results / f"paper_{part}.json", {"machine": machine, "rows": some_rows})
    for page in (report.README, report.PERFORMANCE_PAGE):
        names = re.findall(r"<!-- end of (\w+) -->", (ROOT / page).read_text())
        marks = "".join(f"<!-- {n} -->\nstale\n<!-- end of {n} -->\n" for n in names)
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text(marks)
    return tmp_path
