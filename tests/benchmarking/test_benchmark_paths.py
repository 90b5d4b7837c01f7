"""Benchmarks of the loss's options and of CutMix: checked results, runs on one and two threads."""

import copy
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from benchmarks import check, datafile, report, rows, runner, verify
from benchmarks.clock import Clock
from benchmarks.commands import LOSSES
from benchmarks.problem import OURS, Goal, Implementation, Problem, by_threads
from benchmarks.problems import cross_entropy, cutmix, losses, mix, timm_loop

TINY = {2: (6, 10), 4: (2, 5, 4, 3)}  # number of dimensions -> shape
KINDS = [(kind, TINY[len(shapes[0])], dtype) for kind, shapes, types in LOSSES for dtype in types]


def kind_name(kind):
    if hasattr(kind, "__name__"):
        return kind.__name__
    return kind.args[0] if kind.args else f"{kind.func.__name__}, {kind.keywords}"


IDS = [f"{kind_name(kind)}-{dtype}" for kind, _, dtype in KINDS]
packages = pytest.mark.parametrize(
    "package",
    [
        pytest.param(
            name,
            marks=[
                pytest.mark.deep,  # the import takes seconds
                pytest.mark.skipif(find_spec(name) is None, reason=f"no {name} here"),
            ],
        )
        for name in cutmix.PAIRS
    ],
)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """Skips torch.compile, which takes minutes, of the formula that gives the expected result;
    and timm, whose import takes seconds."""
    monkeypatch.setattr(losses, "compiled", lambda function: function)
    monkeypatch.setattr(timm_loop, "find_spec", lambda name: None)


@pytest.mark.parametrize(("kind", "shape", "dtype"), KINDS, ids=IDS)
def test_implementations_of_the_loss_agree(kind, shape, dtype):
    some = kind(shape, dtype, "cpu")
    assert (some.shape, some.dtype) == (shape, dtype)
    compiled = {
        name for name, implementation in some.implementations.items() if implementation.compiled
    }
    assert set(verify.verify(some)) == compiled <= {"compiled"}
    assert {goal.baseline for goal in some.goals} == set(some.implementations) - {OURS} - compiled
    x = some.fresh()
    assert x.is_leaf and x.requires_grad
    before = x.detach().clone()  # an op in place overwrites x
    assert not torch.equal(some.implementations[OURS].op(x), before)


@pytest.mark.parametrize(("kind", "shape", "dtype"), KINDS, ids=IDS)
def test_a_wrong_gradient_is_caught(kind, shape, dtype):
    some = kind(shape, dtype, "cpu")
    right = some.implementations[OURS]
    off = 1.2  # more than the tolerance of bfloat16
    wrong = replace(right, op=lambda z: off * right.op(z))
    with pytest.raises(verify.WrongResult, match=rf"fused of {some.op} .* must give"):
        verify.verify(replace(some, implementations={**some.implementations, OURS: wrong}))


@pytest.mark.parametrize(
    ("kind", "left_out"),
    [
        (losses.weighted, "weight"),
        (losses.weighted, "label_smoothing"),
        (losses.softcap, "softcap"),
        (losses.z_loss, "z_loss"),
    ],
)
def test_an_option_left_out_is_caught(monkeypatch, kind, left_out):
    original = losses.mixed_cross_entropy

    def ignoring_one(*given, **options):
        options.pop(left_out)
        return original(*given, **options)

    monkeypatch.setattr(losses, "mixed_cross_entropy", ignoring_one)
    some = kind((6, 40), torch.float32, "cpu")
    with pytest.raises(verify.WrongResult, match=f"fused of {some.op}"):
        verify.verify(some)


def test_quick_takes_the_first_shape():
    def taken(quick):
        return [
            (make.args[0].func, *make.args[0].args[-3:-1]) for make in losses.makers("cpu", quick)
        ]

    assert {shape for _, shape, _ in taken(True)} == {(128, 1000), (512, 1000), (4, 21, 128, 128)}
    assert (losses.timm_targets, (256, 21841), torch.float32) in taken(False)
    assert {dtype for *_, dtype in taken(True)} == {torch.float32, torch.bfloat16, torch.float64}


@pytest.mark.deep
@pytest.mark.skipif(find_spec("timm") is None, reason="no timm here")
def test_timms_own_loop(monkeypatch):
    monkeypatch.setattr(timm_loop, "find_spec", find_spec)
    for kind, *_ in timm_loop.CASES:
        some = kind((6, 10), torch.float32, "cpu")
        verify.verify(some)
        assert list(some.implementations) == [OURS, "dense drop-in", "timm"]
        assert some.moved in (0, 2 * 6 * 10 * 4)


def repeats(some):
    """Checks that a repeated call does the same work: the same result the third time."""
    x = some.fresh()
    for implementation in some.implementations.values():
        once = implementation.op(x)
        once = once[0].clone() if isinstance(once, tuple) else once.clone()
        implementation.op(x)
        again = implementation.op(x)
        assert torch.equal(once, again[0] if isinstance(again, tuple) else again)
        x = some.fresh()


def untouched(x):
    return x


@pytest.mark.parametrize("kind, goal", [(cutmix.paste, 1.5), (cutmix.paste_bytes, 8)])
def test_cutmix(kind, goal):
    some = kind((4, 3, 8, 8), "cpu")
    verify.verify(some)
    repeats(some)
    assert some.goals == (Goal("original", 1 / goal),)
    with pytest.raises(verify.WrongResult, match="fused of cutmix_"):
        lazy = replace(some.implementations[OURS], op=untouched)
        verify.verify(replace(some, implementations={**some.implementations, OURS: lazy}))


@packages
def test_cutmix_of(package, monkeypatch):
    some = cutmix.batch(package, (6, 3, 8, 8), "cpu")
    verify.verify(some)
    repeats(some)
    assert some.goals == (Goal("original", 1 / 1.2),)
    ours, original, _ = cutmix.PAIRS[package]()
    monkeypatch.setitem(cutmix.PAIRS, package, lambda: (ours, original, lambda: None))
    unseeded = cutmix.batch(package, (6, 3, 8, 8), "cpu")  # now each call draws another box
    with pytest.raises(verify.WrongResult, match=f"of CutMix of {package}"):
        verify.verify(unseeded)


def test_a_package_that_is_not_there_has_no_row(monkeypatch):
    monkeypatch.setattr(cutmix.importlib.util, "find_spec", lambda name: None)
    assert {make.args[0].func for make in cutmix.makers("cpu")} == {
        cutmix.paste,
        cutmix.paste_bytes,
    }


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)


def counting(seen, dtype=torch.float32):
    """A problem that records the number of threads it runs on."""
    x = torch.ones(4, 8, dtype=dtype)

    def op(x):
        seen.add(torch.get_num_threads())
        return x + x

    implementations = {OURS: Implementation(op, x + x), "eager": Implementation(op, x + x)}
    return Problem("double", (4, 8), dtype, x.clone, implementations, cold=False)


class Quick(Clock):
    def copy_rate(self):
        return 1.0


def measured(makers):
    return runner.run("test", makers, Quick(), runner.Effort(3, 0.0))


def test_rows_by_one_thread_and_by_two(two_cores):
    before, seen = torch.get_num_threads(), set()
    records = measured([*by_threads([lambda: counting(seen)], "cpu")])["benchmarks"]
    assert seen == {1, 2} and torch.get_num_threads() == before
    one, two = rows.rows(records)
    assert one.ours["params"]["threads"] == 1 and two.ours["params"]["threads"] == 2
    assert one.ours["group"] == "double float32 4x8 1 thread warm"
    assert two.ours["group"] == "double float32 4x8 2 threads warm"
    head, body = rows.table_cells([one, two])
    assert [line[head.index("threads")] for line in body] == ["1", "2"]


def test_the_count_is_restored_after_a_wrong_result(two_cores):
    before = torch.get_num_threads()

    def wrong():
        some = counting(set())
        return replace(some, implementations={OURS: Implementation(untouched, torch.zeros(4, 8))})

    for make in by_threads([wrong], "cpu"):
        with pytest.raises(verify.WrongResult):
            measured([make])
        assert torch.get_num_threads() == before


def test_where_there_are_no_rows_by_threads(monkeypatch):
    make = lambda: counting(set())  # noqa: E731
    assert by_threads([make], "cuda") == [make]
    for cores in (1, None):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert [m().threads for m in by_threads([make], "cpu")] == [1]
    records = measured([make])["benchmarks"]
    (row,) = rows.rows(records)
    assert "threads" not in row.ours["params"] and "threads" not in rows.table_cells([row])[0]


def test_the_report_shows_every_dtype_of_the_losses(two_cores):
    makers = [lambda d=d: counting(set(), d) for d in (torch.float32, torch.float64)]
    data = datafile.content(measured(by_threads(makers, "cpu")), Quick(), None, True)
    found = report.performance_blocks({name: copy.deepcopy(data) for name in report.MEASURED})
    assert all(
        f"| {name} | shape | threads |" in found["losses"] for name in ("float32", "float64")
    )
    assert "| double | 4x8 | 2 |" in found["losses"]
    assert "float64" not in found["mix"]


def test_check_measures_them(monkeypatch, two_cores):
    given = []
    for part in (mix, cross_entropy):
        monkeypatch.setattr(part, "makers", lambda *_: [])
    monkeypatch.setattr(losses, "makers", lambda *_: by_threads([lambda: counting(set())], "cpu"))
    monkeypatch.setattr(check, "run", lambda name, makers, *_: given.extend(makers))
    monkeypatch.setattr(datafile, "content", lambda *_: {})
    check.measure()
    assert [make().threads for make in given] == [1, 2]  # first_baseline_only keeps the count
