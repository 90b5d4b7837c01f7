"""The report from data files, and the check against the stored run."""

import copy
import json
import re

import pytest
import torch

from benchmarks import __main__ as cli
from benchmarks import check, datafile, report, rows
from benchmarks.problem import Goal, Implementation
from tests.support.measuring import problem


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: d.pop("schema"), "is of schema 1"),
        (lambda d: d.update(schema=datafile.SCHEMA + 1), f"schema {datafile.SCHEMA + 1}"),
        (lambda d: d["benchmarks"][0].pop("stats"), "lacks 'stats'"),
        (lambda d: d.update(benchmarks={}), "other JSON"),
    ],
)
def test_report_writes_all_or_nothing(files, data, spoil, said):
    path = files / "benchmarks/results/step.json"
    bad = copy.deepcopy(data)
    spoil(bad)
    path.write_text(json.dumps(bad))
    before = {p: p.read_bytes() for p in files.rglob("*") if p.is_file()}
    with pytest.raises(datafile.BadFile, match=re.escape(said)):
        report.main(files)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(datafile.BadFile, match="damaged"):
        report.main(files)
    before[path] = path.read_bytes()
    assert before == {p: p.read_bytes() for p in files.rglob("*") if p.is_file()}


def test_the_report_names_the_machine_of_each_file(files):
    report.main(files)
    page = files / report.PERFORMANCE_PAGE
    assert "\n- mix" not in page.read_text()
    other = datafile.read(files / "benchmarks/results/losses.json")
    other["machine_info"]["capability"] = "AVX9"
    datafile.write_json(files / "benchmarks/results/losses.json", other)
    report.main(files)
    lines = page.read_text().splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("- ")] == [
        "- mix, cross_entropy, step, linear, sharded",
        "- losses",
    ]
    assert any(line.startswith("- losses:") and "AVX9" in line for line in lines)


def test_report(files, data):
    report.main(files)
    page = (files / report.PERFORMANCE_PAGE).read_text()
    (row, _) = rows.rows(data["benchmarks"])
    assert page.count("| double | 64x256 |") == 6 and "stale" not in page
    # Rounded to the file's digits first: to round twice can give another last digit (1.595004).
    ratio = f"{datafile.rounded(row.records['eager']['extra_info']['ratio']):.3g}x ±"
    assert ratio in page and "goal" not in page and "No GPU was measured." in page
    results = (files / report.RESULTS_PAGE).read_text()
    assert "cold" in results and ratio in results and "% (goal 1e+09x)" in results
    assert "| plain PyTorch |" in (files / report.README).read_text()
    for name in ("idea", "speed", "paper_spiral", "test_nll", *report.PICTURES):
        picture = files / f"benchmarks/results/{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
    paper = (files / report.PAPER_PAGE).read_text()
    assert paper.count("4.00 ± 0.00") == 4 and "| ERM | 20.0 | 4.0 | 0.100 |" in paper
    again = {p: p.read_bytes() for p in files.rglob("*") if p.is_file()}
    report.main(files)  # the same data gives the same files
    assert again == {p: p.read_bytes() for p in files.rglob("*") if p.is_file()}
    (files / report.PERFORMANCE_PAGE).write_text(page.replace("<!-- small -->", ""))
    (files / report.RESULTS_PAGE).unlink()
    with pytest.raises(datafile.BadFile, match=r"performance\.md must hold <!-- small -->"):
        report.main(files)
    assert not (files / report.RESULTS_PAGE).exists()


def test_committed_files_are_read():
    for path in datafile.RESULTS.glob("*.json"):
        if path.stem != "training" and not path.stem.startswith("paper"):
            datafile.read(path)


def with_ratio(data, new, half):
    """The data with another ratio for eager with a warm cache."""
    changed = copy.deepcopy(data)
    (record,) = [
        r for r in changed["benchmarks"] if r["name"] == "double float32 64x256 warm [eager]"
    ]
    record["extra_info"].update(ratio=new, ratio_q1=new - half, ratio_q3=new + half)
    return changed


def test_check_finds_what_got_slower(data):
    stored = with_ratio(data, 4.0, 0.1)
    assert check.slower(stored, stored) == {}
    (said,) = check.slower(stored, with_ratio(data, 2.0, 0.1)).values()
    assert "double float32 64x256 warm: eager takes 2 times" in said and "stored run 4" in said
    assert check.slower(stored, with_ratio(data, 3.7, 0.01)) == {}  # less than THRESHOLD
    assert check.slower(stored, with_ratio(data, 2.0, 3.0)) == {}  # within the noise
    assert check.slower(stored, with_ratio(data, 9.0, 0.1)) == {}  # got faster
    assert check.slower({**stored, "benchmarks": []}, data) == {}  # a new problem


@pytest.mark.parametrize(("runs", "code"), [((2.0, 2.0), 1), ((2.0, 4.0), 0), ((4.0,), 0)])
def test_check_counts_what_is_slower_twice(monkeypatch, tmp_path, capsys, data, runs, code):
    datafile.write_json(tmp_path / "check.json", with_ratio(data, 4.0, 0.1))
    measured = iter([with_ratio(data, new, 0.1) for new in runs])
    monkeypatch.setattr(check, "STORED", tmp_path / "check.json")
    monkeypatch.setattr(check, "measure", lambda: next(measured))
    assert cli.main(["check"]) == code
    assert ("got slower" in capsys.readouterr().out) and next(measured, None) is None


def test_check_stores_a_run(monkeypatch, tmp_path, data):
    monkeypatch.setattr(check, "STORED", tmp_path / "check.json")
    monkeypatch.setattr(check, "measure", lambda: data)
    assert cli.main(["check", "--update"]) == 0
    assert check.slower(datafile.read(tmp_path / "check.json"), data) == {}


def test_check_needs_no_compiler():
    names = ("fused", "eager", "compiled")
    x = torch.ones(2)
    some = problem(
        implementations={n: Implementation(lambda x: x, x) for n in names},
        goals=(Goal("eager", 0.1), Goal("compiled", 0.5)),
    )
    kept = check.first_baseline_only(lambda: some)
    assert list(kept.implementations) == ["fused", "eager"] and kept.goals == (Goal("eager", 0.1),)
