"""`make gpu`: a dry run from end to end, its limits, its table and its steps."""

import json
import os
import subprocess
import sys
import weakref
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import datafile
from benchmarks.clock import GRAPH_CALLS, CudaClock, StubClock
from benchmarks.gpu import machine, measure, report, steps
from benchmarks.gpu.__main__ import main, summary
from benchmarks.gpu.cases import LARGE, LOSS_SHARE, MIX_SHARE, Case, cases

ROOT = Path(__file__).parents[2]


def test_a_dry_run_from_end_to_end(tmp_path):
    """Without the packages that a GPU image may lack."""
    for name in ("rich", "pytest_benchmark", "matplotlib", "triton"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('hidden by a test')")
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--to", str(tmp_path / "results")]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for step in (
        "build",
        "tests",
        "memcheck",
        "racecheck",
        *(f"measure {w}" for w in measure.PARTS),
    ):
        assert f"== {step}: " in done.stdout and f"\n{step}: " in done.stdout
    table = done.stdout[done.stdout.index("\nop ") : done.stdout.index("\nbuild: ")]
    assert max(map(len, table.splitlines())) <= 100
    data = json.loads((tmp_path / "results/gpu.json").read_text())
    assert data["machine"]["gpu"] == "stub device" and data["copy_gb_per_s"] == 1000
    assert {"cuda", "triton"} <= set(data["rows"][0]["by"]) and len(data["rows"]) == len(
        list(cases(True, False))
    )
    assert not any("error" in times for row in data["rows"] for times in row["by"].values())
    page = (tmp_path / "results/gpu.md").read_text()
    assert "| mix_ | f32 | 8x12 |" in page and str(ROOT) not in page


class Graph:
    """Stands for torch.cuda.CUDAGraph."""

    replays = 0

    def replay(self):
        Graph.replays += 1


@pytest.mark.parametrize(("inputs", "calls"), [(3, GRAPH_CALLS), (100, 100)])
def test_a_graph_calls_on_all_inputs_in_turn(monkeypatch, inputs, calls):
    """With a fake torch.cuda: how often the op is called, what is kept, and what a call takes."""
    for name in ("Stream", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    clock, seen, made, held = CudaClock("cuda"), [], [], []

    def seconds(replay, graphs):  # a graph takes 2 ms
        for graph in graphs:
            replay(graph)
        return 2e-3 * len(graphs)

    def op(x):
        held.append(sum(one() is not None for one in made))
        seen.append(x.item())
        out = torch.zeros(1)
        made.append(weakref.ref(out))
        return out

    monkeypatch.setattr(clock, "seconds", seconds)
    Graph.replays = 0
    got = clock.graph_seconds(op, [torch.tensor(k) for k in range(inputs)], 5, 0.01)
    assert got == pytest.approx([2e-3 / calls] * 5)
    assert Graph.replays == 2 + 5 * 5
    assert seen == [0, 1] + [k % inputs for k in range(calls)]
    assert max(held) == min(inputs, calls - 1)  # so many results are not written over


def row(us, moved=1e8, share=MIX_SHARE, **more):
    """A row whose backends take so many us, beside a copy of 1,000 GB/s."""
    by = {name: {"graph_s": [1e-6 * t], "call_s": [2e-6 * t]} for name, t in us.items()}
    facts = {"title": "mix_ float32 8x4", "op": "mix_", "dtype": "float32", "shape": [8, 4]}
    return report.Measured(facts | {"moved": moved, "share": share, "by": by | more}, 1000.0)


def test_what_is_below_the_limits():
    assert row({"cuda": 100.0, "triton": 124.0}).shortfalls() == []
    assert row({"cuda": 126.0, "triton": 100.0}).shortfalls() == [
        "mix_ float32 8x4, cuda: 79% of a copy, not 80%"
    ]
    assert len(row({"cuda": 120.0, "triton": 120.0}, share=LOSS_SHARE).shortfalls()) == 2
    assert row({"cuda": 1e4, "eager": 1e4}, moved=LARGE - 1).shortfalls() == []  # too small
    assert row({"cuda": 1e4}, share=0.0).shortfalls() == []
    assert row({"eager": 1e4}).shortfalls() == []  # only ours must be fast
    wrong = row({"eager": 1.0}, cuda={"error": "WrongResult: no"}, timm={"error": "no"})
    assert wrong.shortfalls() == ["mix_ float32 8x4, cuda: WrongResult: no"]
    assert wrong.notes() == ["mix_ float32 8x4, timm: no"]
    assert row({}, cuda={"skipped": "not enough memory"}).shortfalls() == []


def test_the_exit_code_says_whether_all_is_well():
    passed = steps.Result("build", "passed", 1.0)
    skipped, failed = (
        steps.Result("tests", said, 0.0) for said in ("skipped: none", "failed: exit code 1")
    )
    assert summary([passed, skipped], [row({"cuda": 100.0})])[1]
    assert not summary([passed, failed], [])[1]
    lines, well = summary([passed], [row({"cuda": 200.0})])
    assert not well and lines[-1].startswith("BELOW: mix_ float32 8x4, cuda: 50%")


def test_the_table_names_the_best_baseline_and_what_is_too_low():
    some = [
        row({"cuda": 123.0, "triton": 200.0, "timm in place": 300.0, "eager": 900.0, "mul_": 1.0}),
        row({"triton": 100.0}, cuda={"error": "no"}),
        report.Measured({"title": "x" * 90, "by": {"cuda": {"error": "no"}}}, 1000.0),
    ]
    _, first, second, third = report.table(some).splitlines()
    assert first.split() == [
        *("mix_", "f32", "8x4", "100", "123", "81%", "246"),
        *("200", "50%!", "400", "timm", "2.44x"),
    ]
    assert "failed" in second and "failed" in third and len(third) <= 100
    page = report.markdown({"gpu": "G", "torch": "2", "triton": "3"}, 1000.0, some, ["a line"])
    assert "| 123 (81%) | 246 | 200 (50%!) | 400 |" in page and page.endswith("- a line\n")


def test_parts_are_joined_by_problem(tmp_path):
    for who in measure.PARTS:
        part = {"copy_gb_per_s": 2.0, "rows": [{"title": "a", "by": {who: {"error": "x"}}}]}
        datafile.write_json(tmp_path / f"{who}.json", part)
    copy, (one,) = report.joined(tmp_path)
    assert copy == 2.0 and set(one.by) == set(measure.PARTS)
    assert report.joined(tmp_path / "nowhere") == (0.0, [])


def test_a_plain_pass_faster_than_a_copy_is_the_limit(tmp_path):
    rows = [
        {"title": str(size), "moved": size, "by": {"mul_": {"graph_s": [time]}}}
        for size, time in ((100_000_000, 2e-5), (1000, 1e-12))  # 5,000 GB/s; too small to count
    ]
    datafile.write_json(tmp_path / "baselines.json", {"copy_gb_per_s": 3000.0, "rows": rows})
    assert report.joined(tmp_path)[0] == pytest.approx(5000)


def test_a_failing_implementation_does_not_end_the_others(monkeypatch):
    def broken(problem, name):
        raise ValueError("broken\nkernel")

    monkeypatch.setattr(measure, "check", broken)
    found = list(measure.rows(measure.BASELINES, StubClock(), dry=True))
    assert {times["error"] for times in found[0]["by"].values()} == {"ValueError: broken kernel"}
    assert len(found) == len(list(cases(True, False)))


def test_a_problem_that_cannot_be_made_is_named():
    def pasting(shape, device):
        raise ValueError("no")

    found = measure.row_of(Case(partial(pasting, (8, 4)), 0.8), "cuda", StubClock())
    assert found == {"title": "pasting (8, 4)", "by": {"cuda": {"error": "ValueError: no"}}}


@pytest.mark.parametrize(
    ("code", "limit", "said"),
    [
        ("pass", 60, "passed"),
        ("raise SystemExit(3)", 60, "failed: exit code 3"),
        ("import time; time.sleep(60)", 0.0, "failed: took longer than 0 s"),
    ],
)
def test_a_step_passes_fails_or_takes_too_long(code, limit, said):
    step = steps.Step("one", (sys.executable, "-c", code), 60)
    assert steps.run(step, False, limit).said == said


def test_a_build_is_skipped_only_if_it_is_of_this_commit_and_for_this_gpu(monkeypatch):
    monkeypatch.setattr(machine, "architecture", lambda: "9.0")
    monkeypatch.setattr(machine, "commit", lambda: "abc")
    facts = {"commit": "abc", "architectures": ["sm_80", "sm_90"]}
    monkeypatch.setattr(machine, "built", lambda: facts)
    assert "sm_90" in steps.already_built()
    for change in ({"commit": "abc-dirty"}, {"architectures": ["sm_80"]}):
        monkeypatch.setattr(machine, "built", lambda change=change: facts | change)
        assert steps.already_built() == ""
    monkeypatch.setattr(machine, "built", dict)
    monkeypatch.setattr(machine, "commit", str)  # changed, or no checkout
    assert steps.already_built() == ""


def test_without_a_gpu_it_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([]) == 2
    assert "make gpu DRY=1" in capsys.readouterr().out


def test_make_starts_it():
    command = ["make", "-n", "gpu", "DRY=1", "PYTHON=some_python"]
    # As from a shell: below `make test`, make would also tell of the folder that it enters.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.stdout.strip() == "some_python -m benchmarks.gpu --dry"


def test_a_gpu_names_its_folder():
    assert machine.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_what_was_not_built_is_not_measured(monkeypatch):
    monkeypatch.setattr(machine, "built", lambda: {"cuda": None})
    assert steps.not_built("cuda") == "the extension was built without CUDA"
    monkeypatch.setattr(machine, "built", lambda: {"cuda": "13.0"})
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    assert steps.not_built("cuda") == "" == steps.not_built(measure.BASELINES)
    assert steps.not_built("triton") == "no package triton"
