"""Groups the records of a data file into table rows, and formats their cells."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from .problem import OURS


@dataclass(frozen=True)
class Row:
    """All implementations of one problem, with one state of the cache."""

    records: dict[str, dict]  # name of the implementation -> record; OURS is one of them

    @property
    def ours(self) -> dict:
        return self.records[OURS]

    @property
    def op(self) -> str:
        return self.ours["params"]["op"]

    @property
    def dtype(self) -> str:
        return self.ours["params"]["dtype"]

    @property
    def cache(self) -> str:
        return self.ours["params"]["cache"]

    @property
    def threads(self) -> str:
        """Empty if the problem set no number of its own."""
        return str(self.ours["params"].get("threads", ""))

    @property
    def shape(self) -> str:
        return "x".join(map(str, self.ours["params"]["shape"]))

    @property
    def axis(self) -> str:
        """The label of the x axis of a curve over these rows."""
        return self.ours["params"]["sweep"] or "elements of the input"

    @property
    def size(self) -> int:
        """The position on that axis: B is the first dimension, C or D the second."""
        shape = self.ours["params"]["shape"]
        return {"B": shape[0], "C": shape[1], "D": shape[1]}.get(self.axis, prod(shape))

    @property
    def us(self) -> float:
        return 1e6 * self.ours["stats"]["median"]

    @property
    def compile_s(self) -> float | None:
        found = (r["extra_info"].get("compile_s") for r in self.records.values())
        return next((s for s in found if s is not None), None)

    @property
    def missed(self) -> list[str]:
        """Baselines whose goal is missed."""
        goals = {name: r["extra_info"].get("goal") for name, r in self.records.items()}
        return [name for name, goal in goals.items() if goal and not goal["met"]]


def rows(records: list[dict]) -> list[Row]:
    groups: dict[str, dict[str, dict]] = {}
    for record in records:
        groups.setdefault(record["group"], {})[record["params"]["implementation"]] = record
    return [Row(group) for group in groups.values() if OURS in group]


def bytes_text(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def number_text(value: float) -> str:
    """Three significant digits, or the whole number from 100 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def percent(width: float, of: float) -> str:
    return f"±{50 * width / of:.0f}%"


def goal_text(goal: dict | None, shown: bool) -> str:
    """A missed goal, for those who work on the speed; "" in pages for users."""
    return f" (goal {goal['text']})" if shown and goal and not goal["met"] else ""


def ratio(record: dict, goals: bool) -> str:
    extra = record["extra_info"]
    spread = percent(extra["ratio_q3"] - extra["ratio_q1"], extra["ratio"])
    return f"{number_text(extra['ratio'])}x {spread}{goal_text(extra.get('goal'), goals)}"


def memory_cell(extra: dict, goals: bool) -> str:
    if "memory_share" not in extra:
        return ""
    return f"{extra['memory_share']:.3g}x{goal_text(extra.get('memory_goal'), goals)}"


def implementation_cells(some: list[Row], goals: bool = True) -> tuple[list[str], list[list[str]]]:
    """A table of few problems and many implementations: one implementation in each row.

    Memory is shown once for a dtype: it does not depend on the threads.
    """
    names = list(dict.fromkeys(name for row in some for name in row.records))
    head = [f"{some[0].op} {some[0].shape}"]
    body = [[name] for name in names]
    for row in some:
        by = f", {row.threads} thread{'s' * (row.threads != '1')}" if row.threads else ""
        head.append(row.dtype + by)
        iqr = percent(row.ours["stats"]["iqr"], row.ours["stats"]["median"])
        for line in body:
            record = row.records.get(line[0])
            ours = f"{number_text(row.us / 1000)} ms {iqr}"
            line.append("" if record is None else ours if line[0] == OURS else ratio(record, goals))
    for dtype in dict.fromkeys(row.dtype for row in some):
        head.append(f"{dtype}, memory")
        for line in body:
            found = (row.records.get(line[0]) for row in some if row.dtype == dtype)
            cells = [memory_cell(record["extra_info"], goals) for record in found if record]
            line.append(cells[0] if cells else "")
    return head, body


def wire_cells(row: Row) -> tuple[str, str]:
    """Collectives and bytes that a rank receives for a row, ours / those of each baseline."""
    counts = [r["extra_info"]["wire"] for r in row.records.values() if "wire" in r["extra_info"]]
    calls = " / ".join(f"{wire['forward']['calls']}+{wire['backward']['calls']}" for wire in counts)
    sizes = " / ".join(
        f"{wire['forward']['bytes_a_row']:.3g}+{wire['backward']['bytes_a_row']:.3g}"
        for wire in counts
    )
    return calls, sizes


def table_cells(some: list[Row], goals: bool = True) -> tuple[list[str], list[list[str]]]:
    """The header and the cells, without columns that are empty in every row."""
    names = list(dict.fromkeys(n for row in some for n in row.records if n != OURS))
    head = ["op", "shape", "cache", "threads", "us", "±", "GB/s", "of copy"]
    head += [*names, "memory", "collectives", "B a row and rank", "compile s"]
    body = []
    for row in some:
        extra, stats = row.ours["extra_info"], row.ours["stats"]
        rates = ["", ""]
        if "gb_per_s" in extra:
            rates = [number_text(extra["gb_per_s"]), f"{extra['share_of_copy']:.0%}"]
        iqr = percent(stats["iqr"], stats["median"])
        cells = [ratio(row.records[n], goals) if n in row.records else "" for n in names]
        eager = list(row.records.values())[1]["extra_info"]["peak_bytes"]
        memory = f"{bytes_text(extra['peak_bytes'])} / {bytes_text(eager)}"
        took = row.compile_s if row.cache == "warm" else None
        compile_s = f"{took:.1f}" if took is not None else ""
        line = [row.op, row.shape, row.cache, row.threads, number_text(row.us), iqr, *rates, *cells]
        body.append([*line, memory, *wire_cells(row), compile_s])
    used = [k for k in range(len(head)) if any(line[k] for line in body)]
    return [head[k] for k in used], [[line[k] for k in used] for line in body]
