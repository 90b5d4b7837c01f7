"""Rows as a table of the terminal, or of Markdown."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from .rows import Row, grid, rows

BUSY = 0.1  # CPUs; threads of ours then wait for each other, and times scatter
WIDTH = 200  # where no terminal tells its own


def kinds(some: list[Row]) -> list[tuple[str, list[Row]]]:
    """(dtype, rows) of tables without empty columns: the first row has all rivals of the others."""
    tables: list[list[Row]] = []
    for row in some:
        for table in tables:
            if table[0].dtype == row.dtype and row.rivals.keys() <= table[0].rivals.keys():
                table.append(row)
                break
        else:
            tables.append([row])
    return [(table[0].dtype, table) for table in tables]


def busy(machine: dict) -> str:
    taken = machine["busy_cpus"] or 0.0
    if taken <= BUSY:
        return ""
    return f"Other processes took {taken:.2g} CPUs meanwhile: do not trust these times."


def show(data: dict) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    machine = data["machine_info"]
    console.print(
        f"{machine['device_name']}, torch {machine['torch']}, backend {machine['backend']}; "
        f"a copy moves {machine['copy_gb_per_s']:.3g} GB/s. A rival's column: its time over ours; "
        "±: half the distance of the quartiles; memory: ours / the first rival's.",
        highlight=False,
    )
    if words := busy(machine):
        console.print(words)
    for dtype, some in kinds(rows(data["benchmarks"])):
        head, body = grid(some)
        table = Table(title=dtype, title_justify="left")
        for name in head:
            table.add_column(name, justify="left" if name in ("op", "shape", "cache") else "right")
        for line in body:
            table.add_row(*(f"[red]{c}[/]" if "(goal" in c else c for c in line))
        console.print(table)


def markdown(some: list[Row], without: tuple[str, ...] = ()) -> str:
    parts = []
    for dtype, group in kinds(some):
        head, body = grid(group)
        keep = [k for k, name in enumerate(head) if name not in without]
        lines = [[dtype, *(head[k] for k in keep[1:])], ["---"] * len(keep)]
        lines += [[line[k] for k in keep] for line in body]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)
