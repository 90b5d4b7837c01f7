"""`make demo`: backends, speed, training on MNIST digits, and two pictures.

What it prints fits a terminal of 100 columns.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from mmix_fast import info

from . import datafile, front_page, plots, training
from .clock import Clock
from .problems import cross_entropy, mix
from .rows import Row, number_text, rows
from .runner import QUICK, run

PICTURES = Path(__file__).parents[1] / "build"  # ignored by git
COLUMNS = 100


def say(text: str, indent: str = "") -> None:
    print(textwrap.fill(text, COLUMNS, subsequent_indent=indent))


def shown(some: list[Row]) -> list[front_page.Line]:
    """Rows with a warm cache, by all threads, that plain PyTorch code was compared with."""
    threads = str(torch.get_num_threads())
    kept = [row for row in some if row.cache == "warm" and row.threads in ("", threads)]
    return [line for line in map(front_page.line_of, kept) if line.plain]


def show(lines: list[front_page.Line]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("op", "dtype", "shape"):
        table.add_column(name)
    for name in ("us", "PyTorch", "compiled", "memory"):
        table.add_column(name, justify="right")
    for line in lines:
        ratios = front_page.times(line.plain), front_page.times(line.compiled)
        table.add_row(line.op, *line.size.split(), number_text(line.us), *ratios, line.memory)
    Console(width=COLUMNS).print(table)


def measure() -> dict:
    clock = Clock()
    makers = [
        *mix.makers(None, (torch.float32,), "cpu", True),
        *cross_entropy.makers(None, (torch.float32,), "cpu", True),
    ]
    return datafile.content(run("speed", makers, clock, QUICK), clock, None, True)


def main() -> None:
    for line in info.table().splitlines():
        say(line, indent=" " * 24)
    speed = measure()
    lines = shown(rows(speed["benchmarks"]))
    print("\nSpeed on this machine")
    say(
        "Each row: one op of mmix_fast, its time, and how many times as long plain PyTorch and "
        "compiled PyTorch take for the same result (2x: twice as long). Memory: the peak of ours / "
        "of plain PyTorch."
    )
    show(lines)
    say(f"In words: {front_page.in_words(max(lines, key=lambda line: line.plain))}")
    print("\nTraining on this machine: 1,000 digits of MNIST, 3 seeds")
    say(
        "ERM is plain training. NLL (negative log-likelihood) is low where a network is right, and "
        "unsure where it is wrong. A step takes about as long with mixup written by hand (naive) "
        "as with mmix_fast (fused): this network spends its time in convolutions."
    )
    found = training.measure()
    PICTURES.mkdir(exist_ok=True)
    datafile.write(PICTURES / "speed.png", front_page.picture(lines))
    datafile.write(PICTURES / "test_nll.png", plots.test_nll(found))
    print("\nPictures: build/speed.png, build/test_nll.png")
