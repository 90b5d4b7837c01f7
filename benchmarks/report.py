"""Data files -> the README's tables, between their markers, and the picture of the speed-ups."""

from __future__ import annotations

import json
import re
from pathlib import Path

from . import plots
from .harness import RESULTS

README = Path(__file__).parents[1] / "README.md"
RIVALS = ("eager", "timm in place", "lerp", "compiled")
# What no pass over the same bytes can beat, measured in the same rounds.
PLAIN = ("mul_", "x * lam")


def size(count: int) -> str:
    for unit in ("B", "kB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.0f} MB"


def cell(row: dict, name: str) -> str:
    if name not in row["ratio"]:
        return ""
    goal = row["floor"].get(name)
    missed = goal is not None and row["ratio"][name] < goal
    return f"{row['ratio'][name]:.3g}x" + (f" (goal {goal:g}x)" if missed else "")


def table(rows: list[dict], dtype: str) -> str:
    names = [n for n in (*RIVALS, *PLAIN) if any(n in r["ratio"] for r in rows)]
    lines = [
        f"| {dtype} | us | {' | '.join(names)} | extra memory |",
        "|---" * (len(names) + 3) + "|",
    ]
    for row in rows:
        title = row["title"].replace(f"torch.{dtype} ", "")
        cells = " | ".join(cell(row, n) for n in names)
        memory = size(row["peak_bytes"]["fused"])
        lines.append(f"| {title} | {row['us']['fused']:.0f} | {cells} | {memory} |")
    return "\n".join(lines)


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def main() -> None:
    text = README.read_text()
    rows: list[dict] = []
    for name in ("mix", "cross_entropy"):
        rows += read(name)["rows"]
        for dtype in ("float32", "bfloat16"):
            begin, end = f"<!-- {name}.json {dtype} -->", f"<!-- end of {name}.json {dtype} -->"
            pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.S)
            some = [r for r in read(name)["rows"] if dtype in r["title"]]
            new = f"{begin}\n\n{table(some, dtype)}\n\n{end}"
            text, count = pattern.subn(lambda _, new=new: new, text)
            if count != 1:
                raise SystemExit(f"README.md must hold {begin} and {end} once, found {count}")
    README.write_text(text)
    plots.speedups([r for r in rows if "float32" in r["title"]])
    print(f"{README.name}: tables written; {RESULTS.name}/speedups.png drawn")
