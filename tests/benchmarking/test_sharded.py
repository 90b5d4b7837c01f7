"""The benchmark of sharded classes: in processes, end to end, and the page's arithmetic."""

import re
from argparse import Namespace
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as cli
from benchmarks import datafile, options, ranks, rows, runner
from benchmarks.clock import Clock
from benchmarks.problem import OURS
from benchmarks.problems import sharded
from benchmarks.verify import WrongResult
from benchmarks.wire import Wire
from mmix_fast.distributed.collective import PART
from mmix_fast.linear_chunks import default_chunk_size

PAGE = (Path(__file__).parents[2] / "benchmarks/README.md").read_text()


def test_end_to_end(tmp_path, capsys):
    path = tmp_path / "sharded.json"
    words = f"sharded --shapes 40x8x51 --quick --json {path}"
    assert cli.main(words.split()) == 0
    out = capsys.readouterr().out
    found = rows.rows(datafile.read(path)["benchmarks"])
    kinds = [(row.op, row.shape, row.threads) for row in found]
    assert kinds == [
        ("loss, 1 process", "40x51", "1"),
        ("linear head, 1 process", "40x8x51", "1"),
        ("loss, 2 processes", "40x51", "1"),
        ("linear head, 2 processes", "40x8x51", "1"),
    ]
    for row in found:
        assert list(row.records) == [OURS, sharded.MEGATRON, sharded.UNSHARDED]
        ours, theirs = (row.records[n]["extra_info"]["wire"] for n in (OURS, sharded.MEGATRON))
        assert "wire" not in row.records[sharded.UNSHARDED]["extra_info"]
        assert ours["backward"] == theirs["backward"] == {"calls": 0, "bytes_a_row": 0}
        # One more row that compares the shards; for the head, before its one chunk too.
        messages = 2 if "head" in row.op else 1
        others = 1 if "2 processes" in row.op else 0
        wanted = 16 * (40 + messages) / 40 * others
        assert ours["forward"] == {"calls": messages, "bytes_a_row": pytest.approx(wanted)}
        assert theirs["forward"] == {"calls": 3, "bytes_a_row": 16 * others}
    # The logits are not copied; Megatron's way keeps the softmax beside their gradient's buffer.
    one, _, two, _ = (row.ours["extra_info"]["peak_bytes"] for row in found)
    assert two < one < 2 * 40 * 51 * 4
    assert rows.wire_cells(found[2]) == ("1+0 / 3+0", "16.4+0 / 16+0")
    assert "B a row and rank" in out and "16.4+0 / 16+0" in out


def wrong(shape, dtype):
    found = sharded.loss(shape, dtype)
    right = found.implementations[OURS]
    found.implementations[OURS] = right.__class__(
        lambda x: (right.op(x)[0], 1.2 * right.op(x)[1]), right.expected, right.rtol, right.atol
    )
    return found


def broken(shape, dtype):
    raise KeyError("no such thing")


def run(kind, count):
    make = partial(kind, (6, 4, 11), torch.float32)
    return ranks.run([make], (count,), Clock(), runner.Effort(3, 0.0), "reference")


def test_a_wrong_gradient_in_a_process_is_a_wrong_result_here():
    with pytest.raises(WrongResult, match=r"^fused of loss, 2 processes .* must give"):
        run(wrong, 2)


def test_another_error_in_a_process_is_not_hidden():
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="no such thing"):
        run(broken, 1)


def test_the_times_are_those_of_the_slowest(monkeypatch):
    """In one process, where the collectives are replaced."""
    seen = []
    monkeypatch.setattr(ranks.dist, "barrier", lambda: seen.append("barrier"))
    monkeypatch.setattr(ranks.dist, "all_reduce", lambda t, op: seen.append(op) or t.fill_(7.0))
    clock = ranks.TogetherClock()
    assert clock.seconds(lambda x: seen.append("op"), [torch.ones(1)]) == 7.0
    assert seen == ["barrier", "op", torch.distributed.ReduceOp.MAX]


@pytest.mark.parametrize(
    ("world", "name", "received"),
    [
        (4, "_allgather_base_", 3 * 40),
        (4, "allgather_", 3 * 40),
        (4, "allreduce_", 2 * 3 / 4 * 40),
        (1, "_allgather_base_", 0),
    ],
)
def test_bytes_of_a_collective(monkeypatch, world, name, received):
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: world)
    wire, own = Wire(), [torch.zeros(10)]
    filled = torch.zeros(world * 10)
    wire.count(name, (own,) if name == "allreduce_" else (filled, own, None))
    assert (wire.calls, wire.received) == (1, pytest.approx(received))
    assert wire.of_rows(5) == {"calls": 1, "bytes_a_row": pytest.approx(received / 5)}
    with pytest.raises(NotImplementedError, match="broadcast_"):
        wire.count("broadcast_", (own,))


def test_it_runs_on_the_cpu_alone():
    given = Namespace(device="cuda", backend=None, quick=False, json=None)
    with pytest.raises(options.BadOption, match="--device of sharded must be cpu, got cuda"):
        options.checked("sharded", given)


def test_quick_takes_fewer_classes():
    for quick, shape in ((True, sharded.QUICK_SHAPE), (False, sharded.SHAPE)):
        made = sharded.makers(None, (torch.float32,), quick)
        assert [(m.func, *m.args) for m in made] == [
            (kind, shape, torch.float32) for kind in (sharded.loss, sharded.head)
        ]


def test_the_numbers_of_the_page_are_those_of_the_code(monkeypatch):
    ranks_, batch, features, classes = 64, 1024, 512, 10_000_000
    rows_, own, row = ranks_ * batch, classes // ranks_, PART * 4
    device = namedtuple("Device", "multi_processor_count")(132)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: device)
    chunk = default_chunk_size(rows_, features, own, torch.device("cuda"))
    chunks = -(-rows_ // chunk)
    others, ring = ranks_ - 1, 2 * (ranks_ - 1) / ranks_
    table = {
        "weight": own * features * 4,
        "its gradient": own * features * 4,
        "features of all, and their gradient": 2 * rows_ * features * 4,
        "logits of a chunk of c rows; their gradient overwrites them": chunk * own * 4,
        "what a chunk gathers": ranks_ * (chunk + 1) * row,
        "**without chunks**: all logits": rows_ * own * 4,
        "features of the other GPUs (all-gather, yours)": others * batch * features * 4,
        "the loss: before the first chunk, one row that compares the shards": others * row,
        "the loss: a chunk, 4 numbers a row and one more row": others * (chunk + 1) * row,
        "the loss: all chunks and the comparison": others * (rows_ + chunks + 1) * row,
    }
    for name, size in table.items():
        (line,) = (x for x in PAGE.splitlines() if x.startswith(f"| {name} |"))
        assert f"| {rows.bytes_text(size)} |" in line, line
    assert f"c = {chunk}:" in PAGE and f"= {chunks} chunks" in PAGE
    assert (
        f"| {rows.bytes_text(table['the loss: all chunks and the comparison'])} | {chunks + 1} |"
        in PAGE
    )
    said = re.sub(r"\s+", " ", PAGE)
    assert f"= {ring * row:g} bytes a row, {rows.bytes_text(ring * row * rows_)} in all" in said
    assert f"2·N·n·4 = {rows.bytes_text(2 * rows_ * own * 4)}" in said
    assert f"it would run {3 * chunks} collectives" in said
    assert f"6·N·n·D = {6 * rows_ * own * features / 1e12:.3g} TFLOP" in said
    assert f"{others * row:,} a row here" in said
