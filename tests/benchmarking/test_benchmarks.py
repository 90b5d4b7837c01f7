"""The benchmark command line: what it refuses, what it measures, what it writes and what not."""

import copy
import getpass
import json
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mmix_fast
from benchmarks import __main__ as cli
from benchmarks import check, commands, datafile, options, report, rows, runner, step
from benchmarks.clock import Clock
from benchmarks.problem import OURS, Goal, Problem, Rival

ROOT = Path(__file__).parents[2]
EFFORT = runner.Effort(3, 0.0)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def problem(op="double", **more):
    x = torch.randn(64, 256)
    rivals = {OURS: Rival(lambda x: x + x, x * 2), "eager": Rival(lambda x: x * 2, x * 2)}
    rivals["plain"] = Rival(lambda x: x + 1)  # no rival: not what is asked for, and not verified
    more = {"moved": 2 * x.nbytes, "goals": (Goal("eager", 1e-9),), **more}
    return Problem(op, tuple(x.shape), x.dtype, x.clone, more.pop("rivals", rivals), **more)


@pytest.fixture(scope="module")
def data():
    """Of one real measurement."""
    done = runner.run("test", [problem], Clock(), EFFORT)
    return datafile.content(done, Clock(), None, True)


@pytest.fixture
def files(tmp_path, data, monkeypatch):
    """A root as the report finds it, with data files of every name."""
    results = tmp_path / "benchmarks/results"
    results.mkdir(parents=True)
    training = {"rows": [{"method": "ERM", "runs": [{"error": 4.0, "nll": 0.1}]}]}
    for name in ("mix", "cross_entropy", "losses", "scaling", "step"):
        some = copy.deepcopy(data)
        for record in [r for r in some["benchmarks"] if r["params"]["cache"] == "warm"]:
            larger = copy.deepcopy(record)  # a curve has two points
            larger["group"] += " larger"
            larger["params"]["shape"][0] *= 2
            some["benchmarks"].append(larger)
        datafile.write_json(results / f"{name}.json", some)
    datafile.write_json(results / "training.json", training)
    spiral = {"method": "ERM", "confidence": [0, 1, 1, 0], "low_confidence": 0.2}
    spiral |= {"points": [[0.1, 0.2], [0.3, 0.4]], "labels": [0, 1]}
    datafile.write_json(results / "paper_spiral.json", {"rows": [spiral]})
    names = re.findall(r"<!-- end of (\w+) -->", (ROOT / "README.md").read_text())
    marks = "".join(f"<!-- {n} -->\nstale\n<!-- end of {n} -->\n" for n in names)
    (tmp_path / "README.md").write_text(marks)
    return tmp_path


def refused(capsys, *words):
    """The one sentence of a command line that is refused."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    assert stop.value.code == 2
    out, said = capsys.readouterr()
    assert out == "" and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mics"], "invalid choice: 'mics'"),
        ([], "required: COMMAND"),
        (["mix", "--shapes", "128x"], "got '128x'"),
        (["mix", "--shapes", "8x0"], "got '8x0'"),
        (["mix", "--shapes", "8x8,"], "got ''"),
        (["cross_entropy", "--shapes", "8x8x8"], "must be BxC"),
        (["mix", "--dtype", "float8"], "got 'float8'"),
        (["mix", "--device", "tpu"], "got 'tpu'"),
        (["mix", "--device", "cuda:99"], "cuda:99 is not there"),
        (["mix", "--backend", "cpq"], "got 'cpq'"),
        (["mix", "--backend", "cuda"], "it serves cuda tensors, got cpu"),
        (["all", "--json", "none/such"], "a folder that exists, got none/such"),
        (["mix", "--json", "none/such.json"], "in a folder that exists, got none/such.json"),
        (["paper", "cots"], "got 'cots'"),
        (["step", "--dtype", "float32"], "unrecognized arguments"),
        (["losses", "--dtype", "float32"], "unrecognized arguments"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(capsys, words, said):
    assert said in refused(capsys, *words)


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "package.json of someone"}', ""])
def test_no_other_file_is_overwritten(capsys, tmp_path, text):
    target = tmp_path / "mine.json"
    target.write_text(text)
    assert str(target) in refused(capsys, "mix", "--json", str(target))
    assert target.read_text() == text


def test_only_a_whole_run_replaces_a_data_file():
    whole = options.Options()
    assert whole.target("mix") == datafile.RESULTS / "mix.json"
    assert options.Options(device="cuda").target("mix") == datafile.RESULTS / "mix_cuda.json"
    for narrow in ({"quick": True}, {"shapes": ((8, 8),)}, {"backend": "cpp"}):
        assert options.Options(**narrow).target("mix") is None
    assert options.Options(dtypes=(torch.float32,)).target("mix") is None


def test_a_wrong_rival_is_not_timed():
    some = problem()
    x = some.fresh()
    wrong = {OURS: Rival(lambda x: x, x), "eager": Rival(lambda x: x + 1, x, 0.1, 0.1)}
    with pytest.raises(runner.WrongResult, match=r"eager of double .* must give"):
        runner.verify(replace(some, rivals=wrong))


def test_records(data):
    by_name = {(r["params"]["cache"], r["params"]["rival"]): r for r in data["benchmarks"]}
    assert set(by_name) == {(c, n) for c in ("warm", "cold") for n in (OURS, "eager", "plain")}
    ours, eager = by_name["warm", OURS], by_name["warm", "eager"]
    assert ours["extra_info"]["ratio"] == 1
    assert eager["extra_info"]["ratio"] == eager["stats"]["median"] / ours["stats"]["median"]
    size = 64 * 256 * 4
    assert ours["extra_info"]["peak_bytes"] == size and ours["extra_info"]["moved"] == 2 * size
    assert ours["extra_info"]["gb_per_s"] == 2 * size / ours["stats"]["median"] / 1e9
    assert ours["stats"]["rounds"] >= 3 and ours["stats"]["iterations"] >= 1
    (row, cold) = rows.rows(data["benchmarks"])
    assert (row.cache, cold.cache) == ("warm", "cold") and row.missed == ["eager"]
    assert cold.missed == []  # goals are of warm caches


class Steady(Clock):
    """Every call takes as long, and the timer is as good as it is told."""

    def __init__(self, call, precision):
        super().__init__()
        self.call, self.precision = call, precision

    def seconds(self, op, inputs):
        return self.call * len(inputs)


@pytest.mark.parametrize(
    ("call", "precision", "calls"), [(1e-5, 1e-8, 100), (1e-5, 1e-4, 1000), (0.5, 1e-8, 1)]
)
def test_a_round_is_long_against_the_timer(call, precision, calls):
    some = problem()
    found = runner.calibrate(Steady(call, precision), some, runner.Inputs(some, 1))
    assert found == dict.fromkeys(some.rivals, calls)


def test_a_time_is_that_of_one_call():
    some = problem()
    stats, calls = runner.interleave(
        Steady(1e-5, 1e-8), some, runner.Inputs(some, 1), runner.Effort(3, 0.0)
    )
    assert calls == dict.fromkeys(some.rivals, 100)
    assert all(own.data == pytest.approx([1e-5] * 3) for own in stats.values())


def test_no_input_is_found_in_a_cache_when_cold():
    size, cache = 1 << 16, 1 << 20
    copies = runner.copies_for(size, cache)
    assert copies["warm"] == 1 and copies["cold"] * size >= 2 * cache
    seen = [x.data_ptr() for x in runner.Inputs(problem(), 5).take(10)]
    assert len(set(seen)) == 5 and seen[:5] == seen[5:]
    own = [x.data_ptr() for x in runner.Inputs(problem(consumes=True), 1).take(10)]
    assert len(set(own)) == 10
    assert "cold" not in runner.copies_for(cache, cache)  # one alone is cold
    assert "cold" not in runner.copies_for(8, cache)


def test_peak_counts_what_is_held_at_once():
    x = torch.zeros(1000)
    peak = Clock().peak_bytes(lambda: (x + x) * x)
    assert peak == 2 * x.nbytes
    assert Clock().peak_bytes(lambda: [(x + x).numel() for _ in range(3)]) == x.nbytes


def test_a_data_file_names_the_machine_but_not_whose(data):
    info = data["machine_info"]
    assert {"torch", "threads", "capability", "device_name", "copy_gb_per_s"} <= set(info)
    text = json.dumps(data)
    for secret in (platform.release(), str(ROOT), f'"{platform.node()}"', f'"{getpass.getuser()}"'):
        assert secret not in text


def test_pytest_benchmark_reads_it(tmp_path, data):
    datafile.write_json(tmp_path / "one.json", data)
    datafile.write_json(tmp_path / "two.json", data)
    command = [sys.executable, "-m", "pytest_benchmark", "--storage", str(tmp_path), "compare"]
    command += [str(tmp_path / name) for name in ("one.json", "two.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    title = "double float32 64x256 warm [eager]"
    assert done.stdout.count(title) == 2 and "Failed to load" not in done.stdout + done.stderr


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
    one = (files / "README.md").read_text()
    assert "\n- mix" not in one
    other = datafile.read(files / "benchmarks/results/losses.json")
    other["machine_info"]["capability"] = "AVX9"
    datafile.write_json(files / "benchmarks/results/losses.json", other)
    report.main(files)
    lines = (files / "README.md").read_text().splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("- ")] == [
        "- mix, cross_entropy, step",
        "- losses",
    ]
    assert any(line.startswith("- losses:") and "AVX9" in line for line in lines)


def test_report(files, data):
    report.main(files)
    readme = (files / "README.md").read_text()
    (row, _) = rows.rows(data["benchmarks"])
    assert readme.count("| double | 64x256 |") == 4 and "stale" not in readme
    ratio = f"{row.rivals['eager']['extra_info']['ratio']:.3g}x ±"
    assert ratio in readme and "% (goal 1e+09x)" in readme
    assert "cold" in (files / report.FULL).read_text()
    for name in ("hero", *report.PICTURES):
        assert "</svg>" in (files / f"benchmarks/results/{name}.svg").read_text()
    again = {p: p.read_bytes() for p in files.rglob("*") if p.is_file()}
    report.main(files)  # the same data gives the same files
    assert again == {p: p.read_bytes() for p in files.rglob("*") if p.is_file()}
    (files / "README.md").write_text(readme.replace("<!-- small -->", ""))
    (files / report.FULL).unlink()
    with pytest.raises(datafile.BadFile, match="<!-- small -->"):
        report.main(files)
    assert not (files / report.FULL).exists()


def test_committed_files_are_read():
    for path in datafile.RESULTS.glob("*.json"):
        if path.stem not in ("training", "sass") and not path.stem.startswith("paper"):
            datafile.read(path)


def ratio(data, new, half):
    """The data with another ratio of eager, warm."""
    changed = copy.deepcopy(data)
    (record,) = [
        r for r in changed["benchmarks"] if r["name"] == "double float32 64x256 warm [eager]"
    ]
    record["extra_info"].update(ratio=new, ratio_q1=new - half, ratio_q3=new + half)
    return changed


def test_check_finds_what_got_slower(data):
    baseline = ratio(data, 4.0, 0.1)
    assert check.slower(baseline, baseline) == {}
    (said,) = check.slower(baseline, ratio(data, 2.0, 0.1)).values()
    assert "double float32 64x256 warm: eager takes 2 times" in said and "baseline 4" in said
    assert check.slower(baseline, ratio(data, 3.7, 0.01)) == {}  # less than LEAST
    assert check.slower(baseline, ratio(data, 2.0, 3.0)) == {}  # within the noise
    assert check.slower(baseline, ratio(data, 9.0, 0.1)) == {}  # got faster
    assert check.slower({**baseline, "benchmarks": []}, data) == {}  # a new problem


@pytest.mark.parametrize(("runs", "code"), [((2.0, 2.0), 1), ((2.0, 4.0), 0), ((4.0,), 0)])
def test_check_counts_what_is_slower_twice(monkeypatch, tmp_path, capsys, data, runs, code):
    datafile.write_json(tmp_path / "baseline.json", ratio(data, 4.0, 0.1))
    measured = iter([ratio(data, new, 0.1) for new in runs])
    monkeypatch.setattr(check, "BASELINE", tmp_path / "baseline.json")
    monkeypatch.setattr(check, "measure", lambda: next(measured))
    assert cli.main(["check"]) == code
    assert ("got slower" in capsys.readouterr().out) and next(measured, None) is None


def test_every_command_has_a_line_of_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} {c.help}" in text for name, c in commands.COMMANDS.items())


@pytest.mark.parametrize(("words", "written"), [([], True), (["--quick"], False)])
def test_all_reports_what_it_replaced(monkeypatch, words, written):
    done = []
    monkeypatch.setattr(commands, "measure", lambda name, options: done.append(name))
    monkeypatch.setattr(report, "main", lambda: done.append("report"))
    assert cli.main(["all", *words]) == 0
    assert done == [*commands.MEASURING, *(["report"] if written else [])]


def test_check_needs_no_compiler():
    names = ("fused", "eager", "compiled")
    x = torch.ones(2)
    some = problem(
        rivals={n: Rival(lambda x: x, x) for n in names},
        goals=(Goal("eager", 0.1), Goal("compiled", 0.5)),
    )
    kept = check.first_rival_only(lambda: some)
    assert list(kept.rivals) == ["fused", "eager"] and kept.goals == (Goal("eager", 0.1),)


def test_the_hand_written_mixup_is_that_of_the_step():
    with pytest.raises(runner.WrongResult, match="must lose as by hand"):
        step.agree(*wrong_by(1.0))
    step.agree(*wrong_by(0.0))


def wrong_by(shift):
    """What step.agree checks, of a model whose copy for the hand-written loss is off by shift."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 3))
    models = dict(zip((OURS, "naive", "ERM"), step.sharing_weights(model), strict=True))
    hand = step.NaiveMixup(models["naive"], ("", "0"))
    mixup = mmix_fast.ManifoldMixup(models[OURS], ["", "0"])
    models["naive"].register_forward_hook(lambda module, args, z: z + shift * z.abs())
    return models, hand, mixup, torch.randn(6, 4), torch.randint(0, 3, (6,))


END_TO_END = """
from functools import partial
from pathlib import Path
import sys, torch
from benchmarks.__main__ import main
from benchmarks import clock, cross_entropy, datafile, mix, runner, scaling
folder, float32 = sys.argv[1], torch.float32
for name in ("mix", "cross_entropy"):
    words = f"--shapes 6x40 --dtype float32 --quick --json {folder}/{name}.json"
    assert main([name, *words.split()]) == 0
makers = [partial(mix.small, "mix_", float32, "cpu"), partial(cross_entropy.small, float32, "cpu")]
makers.append(partial(scaling.point, "mix_", "B", (3, 16), float32, "cpu"))
rest = runner.run("rest", makers, clock.Clock(), runner.Effort(3, 0.0))
datafile.write_json(Path(folder) / "rest.json", rest)
"""


def test_the_problems_from_end_to_end(tmp_path):
    """As they are, compiled rivals and all."""
    command = [sys.executable, "-c", END_TO_END, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    mixed, lost = (
        rows.rows(datafile.read(tmp_path / f"{name}.json")["benchmarks"])
        for name in ("mix", "cross_entropy")
    )
    assert [row.op for row in mixed] == ["mix_ forward", "mix forward+backward"]
    assert [row.op for row in lost] == ["cross-entropy in place", "cross-entropy fresh gradient"]
    assert all("compiled" in row.rivals for row in mixed + lost)
    assert all(row.compile_s > 0 for row in (*mixed, lost[0])) and lost[1].compile_s is None
    in_place, fresh = (r.ours["extra_info"]["peak_bytes"] for r in lost)
    assert mixed[0].ours["extra_info"]["peak_bytes"] == 0 and fresh - in_place >= 6 * 40 * 4 - 64
    assert all(text in done.stdout for text in ("mix_ forward", "6x40", "soft targets"))
    rest = rows.rows(json.loads((tmp_path / "rest.json").read_text())["benchmarks"])
    assert (rest[2].axis, rest[2].size) == ("B", 3)
    assert all("goal" in row.rivals["x.mul_(lam)"]["extra_info"] for row in rest[:2])


@pytest.mark.parametrize("scatters, kept", [([0.5, 0.1, 0.3], 1), ([0.5, 0.4, 0.3, 0.1], 2)])
def test_the_calmest_measurement_is_kept(monkeypatch, scatters, kept):
    """Until one is calm, or three were tried; whichever is faster."""
    made = []

    def interleave(*_):
        middle, half = 1.0 + len(made), scatters[len(made)] / 2
        stats = runner.Stats()
        for k in range(9):
            stats.update(middle * (1 + half * (k - 4) / 2))
        made.append(({OURS: stats}, {}))
        return made[-1]

    monkeypatch.setattr(runner, "interleave", interleave)
    monkeypatch.setattr(runner, "Inputs", lambda *_: None)
    assert runner.calmest(None, None, 1, None) is made[kept]
    assert len(made) == kept + 1
