"""The benchmark command line, the measurements and the data files."""

import getpass
import json
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mmix_fast
from benchmarks import __main__ as cli
from benchmarks import commands, datafile, options, report, rows, runner, verify
from benchmarks.clock import Clock
from benchmarks.problem import OURS, Implementation
from benchmarks.problems import step
from tests.support.measuring import problem
from tests.support.refusal import refused

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mics"], "invalid choice: 'mics'"),
        ([], "required: COMMAND"),
        (["mix", "--shapes", "128x"], "got '128x'"),
        (["mix", "--shapes", "8x0"], "got '8x0'"),
        (["mix", "--shapes", "8x8,"], "got ''"),
        (["cross_entropy", "--shapes", "8x8x8"], "must be BxC"),
        (["linear", "--shapes", "8x8"], "must be NxDxC, as in 4096x768x21841"),
        (["sharded", "--shapes", "8x8x8x8"], "must be NxDxC, as in 256x128x100000"),
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


def test_what_is_said_where_tools_are_missing():
    """Those of the dev extra: a user's own environment has none of them."""
    code = "import runpy, sys; sys.modules['rich'] = None; sys.argv[1:] = ['--help']; "
    code += "runpy.run_module('benchmarks', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    said = "python -m benchmarks needs rich and other tools, which are not installed: in a clone, "
    said += 'pip install -e ".[dev]" --no-build-isolation\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


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


def test_a_wrong_result_is_not_timed():
    some = problem()
    x = some.fresh()
    wrong = {
        OURS: Implementation(lambda x: x, x),
        "eager": Implementation(lambda x: x + 1, x, 0.1, 0.1),
    }
    with pytest.raises(verify.WrongResult, match=r"eager of double .* must give"):
        verify.verify(replace(some, implementations=wrong))


def test_records(data):
    by_name = {(r["params"]["cache"], r["params"]["implementation"]): r for r in data["benchmarks"]}
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
    assert cold.missed == []  # goals are for warm caches


class Steady(Clock):
    """A clock with a fixed time of a call and a given precision."""

    def __init__(self, call, precision):
        super().__init__()
        self.call, self.precision = call, precision

    def seconds(self, op, inputs):
        return self.call * len(inputs)


@pytest.mark.parametrize(
    ("call", "precision", "calls"), [(1e-5, 1e-8, 100), (1e-5, 1e-4, 1000), (0.5, 1e-8, 1)]
)
def test_a_round_is_long_enough_for_the_timer(call, precision, calls):
    some = problem()
    found = runner.calibrate(Steady(call, precision), some, runner.Inputs(some, 1))
    assert found == dict.fromkeys(some.implementations, calls)


def test_a_time_is_that_of_one_call():
    some = problem()
    stats, calls = runner.interleave(
        Steady(1e-5, 1e-8), some, runner.Inputs(some, 1), runner.Effort(3, 0.0)
    )
    assert calls == dict.fromkeys(some.implementations, 100)
    assert all(own.data == pytest.approx([1e-5] * 3) for own in stats.values())


def test_no_input_is_found_in_a_cache_when_cold():
    size, cache = 1 << 16, 1 << 20
    copies = runner.copies_for(size, cache)
    assert copies["warm"] == 1 and copies["cold"] * size >= 2 * cache
    seen = [x.data_ptr() for x in runner.Inputs(problem(), 5).take(10)]
    assert len(set(seen)) == 5 and seen[:5] == seen[5:]
    own = [x.data_ptr() for x in runner.Inputs(problem(consumes=True), 1).take(10)]
    assert len(set(own)) == 10
    assert "cold" not in runner.copies_for(cache, cache)  # one input fills the cache
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


def test_the_hand_written_mixup_is_that_of_the_step():
    with pytest.raises(verify.WrongResult, match=r"our loss at .* must equal the hand-written"):
        step.check_losses_agree(*wrong_by(1.0))
    step.check_losses_agree(*wrong_by(0.0))


def wrong_by(shift):
    """Arguments of step.check_losses_agree; the logits of the hand-written are off by ``shift``."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 3))
    models = dict(zip((OURS, "naive", "ERM"), step.sharing_weights(model), strict=True))
    by_hand = step.NaiveMixup(models["naive"], ("", "0"))
    mixup = mmix_fast.ManifoldMixup(models[OURS], ["", "0"])
    models["naive"].register_forward_hook(lambda module, args, z: z + shift * z.abs())
    return models, by_hand, mixup, torch.randn(6, 4), torch.randint(0, 3, (6,))


END_TO_END = """
from functools import partial
from pathlib import Path
import sys, torch
from benchmarks.__main__ import main
from benchmarks import clock, datafile, runner
from benchmarks.problems import cross_entropy, mix, other, scaling
folder, float32 = sys.argv[1], torch.float32
for name in ("mix", "cross_entropy"):
    words = f"--shapes 6x40 --dtype float32 --quick --json {folder}/{name}.json"
    assert main([name, *words.split()]) == 0
makers = [partial(mix.small, "mix_", float32, "cpu"), partial(cross_entropy.small, float32, "cpu")]
makers.append(partial(scaling.point, "mix_", "B", (3, 16), float32, "cpu"))
makers.append(partial(other.forward, (6, 40), float32, "cpu"))
rest = runner.run("rest", makers, clock.Clock(), runner.Effort(3, 0.0))
datafile.write_json(Path(folder) / "rest.json", rest)
"""


def test_the_problems_from_end_to_end(tmp_path):
    """With the real problems, torch.compile included."""
    command = [sys.executable, "-c", END_TO_END, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    mixed, lost = (
        rows.rows(datafile.read(tmp_path / f"{name}.json")["benchmarks"])
        for name in ("mix", "cross_entropy")
    )
    assert [row.op for row in mixed] == ["mix_ forward", "mix forward+backward"]
    assert [row.op for row in lost] == ["cross-entropy in place", "cross-entropy fresh gradient"]
    assert all("compiled" in row.records for row in mixed + lost)
    assert all(row.compile_s > 0 for row in (*mixed, lost[0])) and lost[1].compile_s is None
    in_place, fresh = (r.ours["extra_info"]["peak_bytes"] for r in lost)
    assert mixed[0].ours["extra_info"]["peak_bytes"] == 0 and fresh - in_place >= 6 * 40 * 4 - 64
    assert all(text in done.stdout for text in ("mix_ forward", "6x40", "soft targets"))
    rest = rows.rows(json.loads((tmp_path / "rest.json").read_text())["benchmarks"])
    assert (rest[2].axis, rest[2].size) == ("B", 3)
    assert rest[-1].op == "mix_ with other" and "compiled" in rest[-1].records
    assert all("goal" in row.records["x.mul_(lam)"]["extra_info"] for row in rest[:2])


@pytest.mark.parametrize("scatters, kept", [([0.5, 0.1, 0.3], 1), ([0.5, 0.4, 0.3, 0.1], 2)])
def test_the_least_scattered_measurement_is_kept(monkeypatch, scatters, kept):
    """Stops at the first that scatters little, or after three; does not prefer the fastest."""
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
    assert runner.least_scattered(None, None, 1, runner.FULL) is made[kept]
    assert len(made) == kept + 1
