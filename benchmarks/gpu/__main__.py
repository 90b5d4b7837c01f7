"""`make gpu`, or `python3 -m benchmarks.gpu`: needs torch, and uses what else it finds."""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import torch

from ..clock import CudaClock, StubClock
from ..datafile import RESULTS, write, write_json
from . import machine, report
from .steps import TOTAL_S, Result, run, steps

# Packages that are used where they are there.
OPTIONAL = ("triton", "pytest", "xdist", "hypothesis", "liger_kernel", "quack")


def arguments(words: list[str] | None) -> argparse.Namespace:
    top = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    top.add_argument(
        "--dry", action="store_true", help="walk through it on a stub device, on a CPU"
    )
    top.add_argument("--only", nargs="+", metavar="STEP", help="these steps, then the table")
    top.add_argument("--to", type=Path, metavar="FOLDER", help="default: benchmarks/results/<gpu>")
    return top.parse_args(words)


def absent() -> list[str]:
    return [f"skipped: no package {name}" for name in OPTIONAL if not find_spec(name)]


def summary(results: list[Result], rows: list[report.Measured]) -> tuple[list[str], bool]:
    """Lines for the end, and whether all is well."""
    lines = [f"{r.name}: {r.said} ({r.seconds:.0f} s)" for r in results]
    lines += absent() + [note for row in rows for note in row.notes()]
    short = [line for row in rows for line in row.shortfalls()]
    lines += [f"BELOW: {line}" for line in short]
    return lines, not short and not any(r.failed for r in results)


def main(words: list[str] | None = None) -> int:
    given = arguments(words)
    if not given.dry and not torch.cuda.is_available():
        print("make gpu: torch finds no CUDA device; `make gpu DRY=1` walks through it without one")
        return 2
    if given.dry:
        torch.set_num_threads(1)  # its tensors are tiny: threads would only wait for one another
    begin = perf_counter()
    name = (StubClock() if given.dry else CudaClock("cuda")).name()
    with tempfile.TemporaryDirectory() as temporary:
        parts = Path(temporary)
        results = [
            run(step, given.dry, TOTAL_S - (perf_counter() - begin))
            for step in steps(parts)
            if given.only is None or step.name in given.only
        ]
        copy, rows = report.joined(parts)
    facts = machine.describe(name)
    lines, well = summary(results, rows)
    print(f"\n{name}: a copy moves {copy:.4g} GB/s. Times in us, % of that rate; !: too low.")
    print(report.table(rows), *lines, sep="\n")
    default = Path(tempfile.mkdtemp()) if given.dry else RESULTS / machine.slug(name)
    folder = given.to or default
    folder.mkdir(parents=True, exist_ok=True)
    steps_done = [vars(result) for result in results]
    data = {"machine": facts, "copy_gb_per_s": copy, "steps": steps_done}
    write_json(folder / "gpu.json", data | {"rows": [row.facts for row in rows]})
    write(folder / "gpu.md", report.markdown(facts, copy, rows, lines))
    print(f"written: {folder}/gpu.json, gpu.md. {perf_counter() - begin:.0f} s")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
