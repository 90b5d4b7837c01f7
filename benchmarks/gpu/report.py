"""Joins the part files, and shows what was measured: a table, Markdown, and what falls short."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ..datafile import parse
from ..problems import losses
from ..rows import number_text
from ..tables import markdown_table
from .cases import LARGE, PLAIN_PASS
from .measure import BACKENDS, PARTS

# The terminal's table has 100 columns.
SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
SHORT |= {"timm in place": "timm", "two terms": "eager", "soft targets": "eager"}
SHORT |= {"original": "eager", "dense targets": "eager", "Liger-Kernel": "Liger"}
TITLE = 40  # of a problem that could not be made: so much of it is shown
INTRO = """# {gpu}

Written by `make gpu`; every time is in gpu.json. torch {torch}, Triton {triton}, driver {driver}.

- A time is that of a call in a CUDA graph, in us: the median of the rounds, with a cold L2.
- (%): the bytes that any implementation must move, over that time, as a share of the rate of a copy
  or of `mul_`, whichever is higher: here {copy:.4g} GB/s. A row of {large:.0f} MB or more should
  reach the share named under "least".
- call: a plain call from Python, one after another; where it is longer, the GPU waits for the host.
- loss: with its gradient. loss, forward: of training, without the backward. loss, upstream: the
  upstream gradient is {share}, not 1. in place: the gradient takes the place of the logits.
- {plain} changes every element in place and reads no partner: the lower limit of mixing.
"""


@dataclass(frozen=True)
class Measured:
    """A problem with the times of everyone who computes it."""

    facts: dict  # of the part file, and "by" of all parts together
    copy: float  # GB/s, or of a plain pass

    @property
    def by(self) -> dict[str, dict]:
        return self.facts["by"]

    @property
    def head(self) -> list[str]:
        """Op, dtype, shape and MB; a problem that could not be made has a title alone."""
        if "op" not in self.facts:
            return [self.facts["title"][:TITLE], "", "", ""]
        shape = "x".join(map(str, self.facts["shape"]))
        dtype = SHORT.get(self.facts["dtype"], self.facts["dtype"])
        return [self.facts["op"], dtype, shape, number_text(self.facts["moved"] / 1e6)]

    def us(self, name: str, kind: str = "graph_s") -> float | None:
        found = self.by.get(name, {})
        return 1e6 * median(found[kind]) if kind in found else None

    def share(self, name: str) -> float | None:
        us = self.us(name)
        return self.facts["moved"] / us / 1e3 / self.copy if us else None

    @property
    def least(self) -> float:
        """The share that a backend should reach; 0 for none."""
        return self.facts.get("share", 0.0) if self.facts.get("moved", 0) >= LARGE else 0.0

    def shortfalls(self) -> list[str]:
        """A line for each backend that is too slow, wrong or failing."""
        title = self.facts["title"]
        found = [f"{title}, {n}: {self.by[n]['error']}" for n in BACKENDS if self.error(n)]
        for name in BACKENDS:
            share = self.share(name)
            if share is not None and share < self.least:
                found.append(f"{title}, {name}: {share:.0%} of a copy, not {self.least:.0%}")
        return found

    def error(self, name: str) -> str:
        return self.by.get(name, {}).get("error", "")

    def notes(self) -> list[str]:
        """What was skipped, and baselines that failed."""
        skipped = [(n, f["skipped"]) for n, f in self.by.items() if "skipped" in f]
        failed = [(n, self.error(n)) for n in self.by if self.error(n) and n not in BACKENDS]
        return [f"{self.facts['title']}, {name}: {text}" for name, text in skipped + failed]

    def best_baseline(self) -> str:
        """The fastest other way to compute it, as a multiple of our fastest time."""
        baselines = {n: self.us(n) for n in self.by if n not in (*BACKENDS, PLAIN_PASS)}
        times = {name: us for name, us in baselines.items() if us}
        ours = [us for us in map(self.us, BACKENDS) if us]
        if not times or not ours:
            return ""
        name = min(times, key=times.__getitem__)
        return f"{SHORT.get(name, name)} {number_text(times[name] / min(ours))}x"


def plain_passes(rows: Iterable[dict]) -> Iterator[float]:
    """GB/s of the large rows' plain pass, which may be faster than a copy."""
    for row in rows:
        found = row["by"].get(PLAIN_PASS, {})
        if row.get("moved", 0) >= LARGE and "graph_s" in found:
            yield row["moved"] / median(found["graph_s"]) / 1e9


def joined(folder: Path) -> tuple[float, list[Measured]]:
    """The rate of the fastest copy or plain pass, and the rows of the parts that are there."""
    parts = [parse(path) for who in PARTS if (path := folder / f"{who}.json").exists()]
    copy = max((part["copy_gb_per_s"] for part in parts), default=0.0)
    rows: dict[str, dict] = {}
    for part in parts:
        for row in part["rows"]:
            into = rows.setdefault(row["title"], {**row, "by": {}})
            into["by"].update(row["by"])
    copy = max([copy, *plain_passes(rows.values())])
    return copy, [Measured(facts, copy) for facts in rows.values()]


def timed(row: Measured, name: str) -> list[str]:
    """us in a graph, the share of a copy and us of a call."""
    us, share, call = row.us(name), row.share(name), row.us(name, "call_s")
    if us is None:
        return ["failed" if row.error(name) else "-", "", ""]
    low = "!" if share < row.least else ""
    return [number_text(us), f"{share:.0%}{low}", number_text(call)]


def table(rows: list[Measured]) -> str:
    """For a terminal, at most 100 columns wide: of a backend us, share and us of a call."""
    head = ["op", "type", "shape", "MB", *(c for n in BACKENDS for c in (n, "%", "call"))]
    body = [
        [*row.head, *(c for n in BACKENDS for c in timed(row, n)), row.best_baseline()]
        for row in rows
    ]
    lines = [[*head, "best baseline"], *body]
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    left = (0, 1, 2, len(widths) - 1)  # the others are numbers
    return "\n".join(
        " ".join(
            cell.ljust(width) if k in left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def short_markdown(data: dict) -> str:
    """For users, from the data file: every row's time, and the fastest other way to compute it."""
    rows = [Measured(facts, data["copy_gb_per_s"]) for facts in data["rows"]]
    head = ["op", "dtype", "shape", *(f"{name}, us (of a copy)" for name in BACKENDS)]
    body = []
    for row in rows:
        op, dtype, shape, _ = row.head
        cells = [timed(row, name)[:2] for name in BACKENDS]
        shown = [f"{us} ({share.rstrip('!')})" if share else us for us, share in cells]
        body.append([op, dtype, shape, *shown, row.best_baseline()])
    return markdown_table([*head, "fastest baseline"], body)


def markdown(machine: dict, copy: float, rows: list[Measured], summary: list[str]) -> str:
    baselines = list(dict.fromkeys(n for row in rows for n in row.by if n not in BACKENDS))
    head = ["op", "dtype", "shape", "MB", "least"]
    head += [c for n in BACKENDS for c in (n, f"{n} call")] + baselines
    body = []
    for row in rows:
        line = [*row.head, f"{row.least:.0%}" if row.least else ""]
        for name in (*BACKENDS, *baselines):
            us, share, call = timed(row, name)
            line.append(f"{us} ({share})" if share else us)
            if name in BACKENDS:
                line.append(call)
        body.append(line)
    known = {"driver": "unknown"} | machine
    constants = {"large": LARGE / 1e6, "plain": f"`{PLAIN_PASS}`", "share": losses.SHARE}
    intro = INTRO.format(**known, **constants, copy=copy)
    listed = "\n".join(f"- {line}" for line in summary)
    return f"{intro}\n{markdown_table(head, body)}\n\n{listed}\n"
