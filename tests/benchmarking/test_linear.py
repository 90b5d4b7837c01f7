"""The benchmark of a linear head: what is verified, what is counted, and the tables."""

from dataclasses import replace

import pytest
import torch

from benchmarks import __main__ as cli
from benchmarks import datafile, report, rows, runner, tables, verify
from benchmarks.clock import Clock
from benchmarks.problem import OURS, THREADS, Goal, Implementation
from benchmarks.problems import linear
from tests.support.measuring import problem as tiny

KINDS = {linear.STEP: linear.losses, linear.SWEEP: linear.by_chunks}
SHAPE = (40, 8, 50)
TWICE = ["torch twice", "torch chunked twice"]


def made(op, dtype=torch.float32, some=False, shape=SHAPE):
    return linear.problem(op, KINDS[op], some, shape, dtype, "cpu")


@pytest.mark.parametrize("op", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_timed_is_verified_in_float64_at_a_small_shape(op, dtype):
    some = made(op, dtype)
    small = some.small
    assert (small.shape, some.shape, small.dtype) == (linear.CHECKED, SHAPE, dtype)
    assert list(small.implementations) == list(some.implementations)
    for name, right in small.implementations.items():
        assert len(right.expected) == 3 and {t.dtype for t in right.expected} == {torch.float64}
        verify.check(small, name)
        for wrong in range(3):

            def off(x, right=right, wrong=wrong):
                found = list(right.op(x))
                found[wrong] = 1.2 * found[wrong]
                return tuple(found)

            changed = {**small.implementations, name: replace(right, op=off)}
            with pytest.raises(verify.WrongResult, match=f"^{name} of {op}"):
                verify.check(replace(small, implementations=changed), name)


def test_the_baseline_of_the_goal_holds_its_logits_once():
    some = made(linear.STEP).small
    step = some.implementations[linear.ALL_LOGITS].op
    rows_, _, classes = some.shape
    x = some.fresh()
    assert 1 <= Clock().peak_bytes(lambda: step(x)) / (rows_ * classes * 4) < 1.5


def test_a_wrong_one_is_not_timed():
    some = made(linear.STEP)
    right = some.small.implementations[OURS]
    wrong = {OURS: replace(right, op=lambda x: right.op(2 * x))}
    with pytest.raises(verify.WrongResult, match="300x24x500"):
        runner.measure(
            replace(some, small=replace(some.small, implementations=wrong)),
            Clock(),
            linear.EFFORT,
            1.0,
        )


def test_the_sweep_has_every_chunk_size(monkeypatch):
    seen = []
    monkeypatch.setattr(
        linear,
        "mixed_linear_cross_entropy",
        lambda x, w, *_, chunk_size=None: seen.append(chunk_size) or (x.sum() + w.sum()),
    )
    some = made(linear.SWEEP)
    for implementation in some.implementations.values():
        implementation.op(some.fresh())
    assert seen == [None, *linear.CHUNKS, len(some.fresh())]
    assert list(some.implementations) == [OURS, *map(str, linear.CHUNKS), "whole"]
    assert some.goals == ()
    assert made(linear.STEP).goals == (Goal("all logits", 1.1),)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_must_be_held_is_features_weight_and_their_gradients(dtype):
    some = made(linear.STEP, dtype)
    assert some.held == 2 * (40 * 8 + 50 * 8) * dtype.itemsize
    assert some.memory_goal == some.small.memory_goal == 1.25


def test_what_others_have_runs_or_is_left_out_with_a_reason(monkeypatch):
    found, skipped = linear.others("cpu", torch.float32)
    assert list(found) == TWICE and list(skipped) == ["Liger-Kernel"]
    found, skipped = linear.others("cpu", torch.bfloat16)
    assert list(found) == TWICE[:1] and "torch chunked" in skipped
    monkeypatch.setattr(linear, "find_spec", lambda name: None)
    found, skipped = linear.others("cuda", torch.bfloat16)
    assert list(found) == TWICE and skipped == {"Liger-Kernel": "no package liger_kernel"}
    monkeypatch.setattr(linear, "find_spec", lambda name: name)
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy")
    found, skipped = linear.others("cuda", torch.float32)
    assert found == {"Liger-Kernel twice": linear.liger} and list(skipped) == ["torch"]
    assert made(linear.STEP).notes[OURS]["skipped"].keys() == {"torch", "Liger-Kernel"}
    assert made(linear.STEP, some=True).notes == {}


@pytest.mark.parametrize(
    ("cores", "threads"), [(1, [1, 1, 1]), (4, [1, THREADS, THREADS, THREADS])]
)
def test_one_thread_has_no_slow_baselines(monkeypatch, cores, threads):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    dtypes = torch.float32, torch.bfloat16
    made = [make() for make in linear.makers((SHAPE,), dtypes, "cpu", False)]
    assert [p.threads for p in made] == threads
    assert [(p.op, p.dtype) for p in made[-3:]] == [
        (linear.STEP, torch.float32),
        (linear.STEP, torch.bfloat16),
        (linear.SWEEP, torch.float32),
    ]
    assert all("torch twice" in p.implementations for p in made[-3:-1])
    if cores > 1:
        assert list(made[0].implementations) == [OURS, linear.ALL_LOGITS, "two terms"]


def test_shapes_of_quick_and_of_a_gpu():
    for quick, shape in ((True, linear.QUICK_SHAPE), (False, linear.SHAPE)):
        made = linear.makers(None, (torch.float32,), "cuda", quick)
        assert [make.args[3] for make in made] == [shape, shape]
        assert [make.args[0] for make in made] == [linear.STEP, linear.SWEEP]


def measured(some, effort=linear.EFFORT):
    return {r["param"]: r for r in runner.measure(some, Clock(), effort, 1.0)}


def test_memory_is_a_share_of_inputs_and_gradients():
    ops = {OURS: lambda x: x + x, "two": lambda x: (x + x) * x}
    held = 2 * 64 * 256 * 4
    some = tiny(
        implementations={name: Implementation(op) for name, op in ops.items()},
        goals=(),
        held=held,
        memory_goal=1.25,
        slow=True,
        cold=False,
        notes={"two": {"more": 1}},
    )
    found = measured(some)
    shares = {name: r["extra_info"]["memory_share"] for name, r in found.items()}
    assert shares == {OURS: 1.0, "two": 1.5}
    assert found[OURS]["extra_info"]["memory_goal"] == {"text": "1.25x", "met": True}
    assert "memory_goal" not in found["two"]["extra_info"]
    assert found["two"]["extra_info"]["more"] == 1 and "more" not in found[OURS]["extra_info"]
    (row,) = rows.rows([*found.values()])
    assert [line[-1] for line in rows.implementation_cells([row])[1]] == ["1x", "1.5x"]
    (missed,) = rows.rows([*measured(replace(some, memory_goal=0.9)).values()])
    cells = rows.implementation_cells([missed])[1]
    assert [line[-1] for line in cells] == ["1x (goal 0.9x)", "1.5x"]
    assert "memory_goal" not in measured(replace(some, memory_goal=0.0))[OURS]["extra_info"]
    assert "memory_share" not in measured(replace(some, held=0))[OURS]["extra_info"]


def test_a_slow_call_is_a_round_and_is_tried_once():
    calls = []
    some = tiny(implementations={OURS: Implementation(lambda x: calls.append(x))}, slow=True)
    some = replace(some, goals=(), cold=False)
    found = runner.least_scattered(Clock(), some, 1, linear.EFFORT)
    assert len(calls) == linear.EFFORT.rounds and found[1] == {OURS: 1}


def test_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    path = tmp_path / "linear.json"
    words = f"linear --shapes {'x'.join(map(str, SHAPE))} --json {path}"
    assert cli.main(words.split()) == 0
    out = capsys.readouterr().out
    data = datafile.read(path)
    found = rows.rows(data["benchmarks"])
    assert [(row.op, row.dtype, row.threads) for row in found] == [
        (linear.STEP, "float32", "1"),
        (linear.STEP, "float32", "2"),
        (linear.STEP, "bfloat16", "2"),
        (linear.SWEEP, "float32", "2"),
    ]
    assert list(found[1].records) == [OURS, "all logits", "two terms", *TWICE]
    assert found[1].ours["extra_info"]["skipped"] == {"Liger-Kernel": "its kernels are for GPUs"}
    for row in found:
        for record in row.records.values():
            assert record["extra_info"]["memory_share"] > 1 and record["stats"]["rounds"] == 3
    assert "linear head 40x8x50" in out and "linear head by chunk_size 40x8x50" in out
    assert "not measured: Liger-Kernel (its kernels are for GPUs)" in " ".join(out.split())
    block = report.performance_blocks(dict.fromkeys(report.MEASURED, data))["linear"]
    head, _, *lines = block.splitlines()
    assert head.split(" | ")[1:4] == [
        "float32, 1 thread",
        "float32, 2 threads",
        "bfloat16, 2 threads",
    ]
    assert [line.split(" | ")[0] for line in lines] == [f"| {n}" for n in found[1].records]
    assert linear.SWEEP not in block and linear.SWEEP in report.results_page({"linear": data})
    twice = dict(zip(head.split(" | "), lines[-1].split(" | "), strict=True))
    assert twice["float32, 1 thread"] == twice["bfloat16, memory |"].strip("| ") == ""
    assert tables.parts(found)[0][1][-2:] == ["float32, memory", "bfloat16, memory"]
