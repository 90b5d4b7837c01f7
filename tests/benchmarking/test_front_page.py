"""The README's six rows from data files, their picture, and what `make demo` prints."""

import copy
import json

import pytest
import torch

from benchmarks import datafile, demo, front_page, report, training
from benchmarks.front_page import Line, gpu_line, in_words, machine_of, selected, table, times
from benchmarks.gpu.report import Measured
from benchmarks.reproduce import published
from benchmarks.rows import rows

GPU = {
    "copy_gb_per_s": 1000.0,
    "machine": {"gpu": "G", "when": "2026-01-01", "torch": "2", "triton": "3"},
    "rows": [
        {
            "title": "loss bfloat16 8192x32000",
            "op": "loss",
            "dtype": "bfloat16",
            "shape": [8192, 32000],
            "moved": 4_000_000,
            "by": {
                "cuda": {"graph_s": [2e-6], "call_s": [3e-6]},
                "two terms": {"graph_s": [1e-5], "call_s": [1e-5]},
            },
        },
        {"title": "could not be made", "by": {"cuda": {"error": "no"}}},
    ],
}


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.56, "0.6x"), (0.997, "1.0x"), (9.44, "9.4x"), (9.6, "10x"), (33.5, "34x")],
)
def test_a_ratio_has_two_digits(value, text):
    assert times(value) == text


def with_op(data, op, shape):
    """A data file whose only problem is this one."""
    changed = copy.deepcopy(data)
    for record in changed["benchmarks"]:
        record["params"].update(op=op, shape=shape)
    return changed


def test_rows_are_selected_from_the_data_files(data):
    files = {
        "mix": with_op(data, "mix_ forward", [128, 64, 32, 32]),
        "cross_entropy": with_op(data, "another op", [4, 4]),
        "step": with_op(data, "step of PreActResNet-18", [64, 3, 32, 32]),
    }
    first, step, gpu = selected(files, GPU)
    (row, _) = rows(files["mix"]["benchmarks"])
    assert first.op == "`mix_`, forward" and first.size == "float32 128x64x32x32"
    assert first.plain == row.records["eager"]["extra_info"]["ratio"] and first.compiled is None
    assert first.machine == machine_of(data) and "threads" in first.machine
    assert step.us == pytest.approx(row.us) and " / " in step.memory
    assert (gpu.machine, gpu.memory, gpu.compiled) == ("G", "", None)
    assert gpu.us == pytest.approx(2) and gpu.plain == pytest.approx(5)
    assert [line.machine for line in selected(files, None)] == [first.machine] * 2
    assert table([gpu]).splitlines()[-1] == (
        "| `mixed_cross_entropy`, forward and backward, bfloat16 8192x32000 | G | 5.0x |  |  |"
    )
    assert front_page.picture([first, gpu]).startswith(b"\x89PNG")


def test_of_two_gpus_the_newest_is_shown(data):
    older = copy.deepcopy(GPU)
    older["machine"].update(gpu="old", when="2025-12-31")
    files = dict.fromkeys(("mix", "cross_entropy", "step"), data)
    for gpus in ({"a": older, "b": GPU}, {"a": GPU, "b": older}):
        (line,) = report.Data(files, {}, gpus, {}, {}).lines()
        assert line.machine == "G"


def test_a_gpu_row_without_our_time():
    facts = {"title": "mix_ of the GPU", "shape": [2], "dtype": "float32", "by": {}}
    with pytest.raises(ValueError, match="mix_ of the GPU must have a time of the backend cuda"):
        gpu_line(Measured(facts, 1.0), "G", "mix_")


def test_the_page_has_a_table_for_each_gpu():
    block = report.gpu_block({"g-1": GPU})
    assert block.startswith("**G**, 2026-01-01, torch 2, Triton 3; a copy moves 1000 GB/s.")
    assert "(../benchmarks/results/g-1/gpu.md)" in block
    lines = block.splitlines()
    assert lines[-2] == "| loss | bf16 | 8192x32000 | 2 (200%) | - | eager 5x |"
    assert lines[-1] == "| could not be made |  |  | failed | - |  |"


def test_what_the_paper_found():
    assert front_page.paper(published.read()).endswith(
        "(Table 1a) the test error of PreActResNet-18 on CIFAR-10 falls from 4.83 % to 2.95 %, and "
        "with mixup of the inputs alone to 3.82 %."
    )


def test_a_row_in_words():
    line = Line("mix", "float32 2x2", "", 12.3, 2.0, 0.5, "")
    assert in_words(line) == (
        "mix, float32 2x2, takes 12.3 us; plain PyTorch takes 2.0x as long and compiled PyTorch "
        "takes 0.5x as long."
    )
    assert "compiled" not in in_words(Line("mix", "float32 2x2", "", 12.3, 2.0, None, ""))


def test_the_demo_fits_a_terminal(monkeypatch, tmp_path, capsys):
    """Of the committed data files, whose rows are those that the demo shows, and more."""
    speed = datafile.read(datafile.RESULTS / "mix.json")
    speed["benchmarks"] += datafile.read(datafile.RESULTS / "cross_entropy.json")["benchmarks"]
    lines = demo.shown(rows(speed["benchmarks"]))
    assert len({(line.op, line.size) for line in lines}) == len(lines) > 20
    trained = json.loads((datafile.RESULTS / "training.json").read_text())["rows"]
    monkeypatch.setattr(demo, "measure", lambda: speed)
    monkeypatch.setattr(training, "measure", lambda: trained)
    monkeypatch.setattr(demo, "PICTURES", tmp_path / "pictures")
    torch.set_num_threads(2)
    demo.main()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= demo.COLUMNS
    assert lines[-1] == "Pictures: build/speed.png, build/test_nll.png"
    assert sum("256x3x224x224" in line for line in lines) == 1  # by all threads only
    assert any("In words: " in line for line in lines)
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {"speed.png", "test_nll.png"}
