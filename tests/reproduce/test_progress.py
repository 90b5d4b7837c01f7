"""What is shown of a run: durations, estimates, lines without a terminal, a bar on one."""

import io

import pytest
import torch
from rich.console import Console

from benchmarks.reproduce import progress
from benchmarks.reproduce.progress import Display, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (3600 * 3 + 20 * 60 + 5, "3 h 20 min"),
        (3605, "1 h"),
        (86400 * 4 + 3 * 3600 + 59, "4 d 3 h"),
        (86400 * 2 + 300, "2 d"),
    ],
)
def test_durations_have_two_units_at_most(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by 2 s with each step."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


SUMS = torch.tensor([30.0, 5.0, 20.0], dtype=torch.float64)
ROW = {"train_loss": 1.5, "train_accuracy": 25.0, "test_error": 60.0, "test_nll": 2.0}


def steps(display, clock, count):
    with display:
        for _ in range(count):
            clock[0] += 2
            display.step(SUMS, "manifold-mixup-seed0 1200/1200")


def test_without_a_terminal_an_estimate_and_a_line_for_each_epoch(clock, capsys):
    display = Display(90)
    steps(display, clock, 30)
    display.epoch(ROW, "a run")
    assert capsys.readouterr().out == (
        "about 3 min for all, by the first 20 steps\n"
        "a run: loss 1.5000, accuracy 25.0 %, test error 60.00 %, test NLL 2.0000, 2 min left\n"
    )


def test_short_runs_need_no_estimate(clock, capsys):
    steps(Display(20), clock, 20)
    assert capsys.readouterr().out == ""


def test_a_trial_gives_an_estimate_of_its_own(clock, capsys):
    steps(Display(90, estimates=False), clock, 30)
    assert capsys.readouterr().out == ""


def test_other_ranks_say_nothing(clock, capsys):
    display = Display(90, shown=False)
    steps(display, clock, 30)
    display.say("hello")
    display.epoch(ROW, "a run")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar_with_loss_accuracy_and_time_left(clock, monkeypatch):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "Console", lambda **options: console)
    display = Display(90)
    steps(display, clock, 30)
    display.epoch(ROW, "a run")  # the bar says it
    (task,) = display.progress.tasks
    assert (task.completed, task.total) == (30, 90)
    for shown in ("manifold-mixup-seed0 1200/1200", "loss 1.500 accuracy 25.0 % 2 min left"):
        assert shown in file.getvalue()
    assert "for all" in file.getvalue() and "test error" not in file.getvalue()


def test_the_loss_is_read_from_the_device_once_in_a_while(clock, monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(progress, "Console", lambda **options: console)
    reads = []

    class Sums:
        def tolist(self):
            reads.append(clock[0])
            return SUMS.tolist()

    with Display(500) as display:
        for _ in range(100):
            clock[0] += 0.25
            display.step(Sums(), "a run")
    assert len(reads) == 25
