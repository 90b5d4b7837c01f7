"""Shows how far all runs are: a bar on a terminal, else a line an epoch."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

ESTIMATE_AFTER = 20  # steps; the first ones are slower
BETWEEN = 1.0  # seconds; the loss is on the device, and to read it makes the host wait


def duration(seconds: float) -> str:
    """In words, to two units: 4 d 3 h, 3 h 20 min, 2 min 5 s, 12 s."""
    left, found = round(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if (count := left // size) or (unit == "s" and not found):
            found.append((size, f"{count} {unit}"))
        left %= size
    first = found[0][0]
    near = [text for size, text in found[:2] if size * 60 >= first]
    return " ".join(near)


def counted(runs: int) -> str:
    return f"{runs} run" + "s" * (runs != 1)


class Display:
    """Of `total` steps, over all runs."""

    def __init__(self, total: int, shown: bool = True, estimates: bool = True) -> None:
        self.estimates = estimates
        self.total, self.done, self.started = total, 0, time.perf_counter()
        self.console = Console(quiet=not shown, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=8),  # all four must fit a terminal of 80 columns
            TextColumn("{task.fields[numbers]}"),
            TextColumn("{task.fields[left]}"),
        )
        terminal = shown and self.console.is_terminal
        self.progress = Progress(
            *columns, console=self.console, transient=True, disable=not terminal
        )
        self.task = self.progress.add_task("", total=max(total, 1), numbers="", left="")
        self.looked = self.started

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def left(self) -> str:
        """The time that all runs will still take, testing included."""
        spent = time.perf_counter() - self.started
        return f"{duration(spent / self.done * (self.total - self.done))} left"

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    def step(self, sums, title: str) -> None:
        """After each step; `sums` as Trainer.epoch yields them."""
        self.done += 1
        now = time.perf_counter()
        if self.estimates and self.done == ESTIMATE_AFTER < self.total:
            whole = (now - self.started) / self.done * self.total
            self.say(f"about {duration(whole)} for all, by the first {self.done} steps")
        if self.progress.disable or now - self.looked < BETWEEN:
            return
        self.looked = now
        loss, right, count = sums.tolist()
        numbers = f"loss {loss / count:.3f} accuracy {100 * right / count:.1f} %"
        self.progress.update(
            self.task,
            description=title,
            completed=self.done,
            numbers=numbers,
            left=self.left(),
        )

    def epoch(self, row: dict, title: str) -> None:
        """After each epoch; `row` is its line in the log."""
        if self.progress.disable:
            self.say(
                f"{title}: loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.1f} %, "
                f"test error {row['test_error']:.2f} %, test NLL {row['test_nll']:.4f}, "
                f"{self.left()}"
            )
