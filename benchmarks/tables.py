"""Rows as a table for the terminal, or in Markdown."""

from __future__ import annotations

import sys

from .rows import Row, implementation_cells, rows, table_cells

BUSY = 0.1  # CPUs used by other processes, from which on our threads wait and times scatter
WIDTH = 200  # if the output is not a terminal


def same_columns(some: list[Row]) -> list[tuple[str, list[Row]]]:
    """(dtype, rows) of tables without empty columns.

    A row joins a table whose first row has all implementations that it has.
    """
    tables: list[list[Row]] = []
    for row in some:
        for table in tables:
            if table[0].dtype == row.dtype and row.records.keys() <= table[0].records.keys():
                table.append(row)
                break
        else:
            tables.append([row])
    return [(table[0].dtype, table) for table in tables]


def skipped(some: list[Row]) -> str:
    """Which baselines could not run, and why."""
    reasons: dict[str, str] = {}
    for row in some:
        reasons |= row.ours["extra_info"].get("skipped", {})
    listed = ", ".join(f"{name} ({why})" for name, why in reasons.items())
    return f"not measured: {listed}" if listed else ""


def parts(some: list[Row], goals: bool = True) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, head, cells) of tables: the problems whose memory is a share have one of their own,
    with an implementation in each row."""
    apart = [row for row in some if "memory_share" in row.ours["extra_info"]]
    found = [
        (dtype, *table_cells(group, goals))
        for dtype, group in same_columns([row for row in some if row not in apart])
    ]
    for key in dict.fromkeys((row.op, row.shape) for row in apart):
        group = [row for row in apart if (row.op, row.shape) == key]
        head, body = implementation_cells(group, goals)
        found.append(("", head, body))
    return found


def busy(machine: dict) -> str:
    taken = machine["busy_cpus"] or 0.0
    if taken <= BUSY:
        return ""
    return f"Other processes used {taken:.2g} CPUs during the run: these times are unreliable."


def show(data: dict) -> None:
    from rich.console import Console  # here: `make gpu` needs Markdown only, and may lack rich
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    machine = data["machine_info"]
    console.print(
        f"{machine['device_name']}, torch {machine['torch']}, backend {machine['backend']}; "
        f"a copy moves {machine['copy_gb_per_s']:.3g} GB/s. A baseline's column: its time / ours; "
        "±: half the interquartile range; memory: peak of ours / of the first baseline.",
        highlight=False,
    )
    some = rows(data["benchmarks"])
    for words in (busy(machine), skipped(some)):
        if words:
            console.print(words, highlight=False)
    for title, head, body in parts(some):
        table = Table(title=title or None, title_justify="left")
        for name in head:
            left = name in ("op", "shape", "cache") or (not title and name == head[0])
            table.add_column(name, justify="left" if left else "right")
        for line in body:
            table.add_row(*(f"[red]{c}[/]" if "(goal" in c else c for c in line))
        console.print(table)


def markdown_table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(some: list[Row], without: tuple[str, ...] = (), goals: bool = True) -> str:
    found = []
    for title, head, body in parts(some, goals):
        keep = [k for k, name in enumerate(head) if name not in without]
        kept_head = [title or head[0], *(head[k] for k in keep[1:])]
        found.append(markdown_table(kept_head, [[line[k] for k in keep] for line in body]))
    return "\n\n".join(found)
