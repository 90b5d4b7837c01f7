"""Writes the tables of README.md and docs/, RESULTS.md, PAPER.md and the pictures.

Everything is made first and written last: if a data file is bad, nothing changes.
"""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from . import datafile, front_page, idea, plots, tables
from .gpu import report as gpu_report
from .paper import report as paper
from .problems import linear
from .reproduce import published
from .rows import Row, rows

ROOT = Path(__file__).parents[1]
README, PERFORMANCE_PAGE = "README.md", "docs/performance.md"
RESULTS_PAGE, PAPER_PAGE = "benchmarks/RESULTS.md", "benchmarks/PAPER.md"
# picture -> (what draws it, the data files it takes)
PICTURES = {
    "speedup": (plots.speedup, ("mix", "cross_entropy")),
    "bandwidth": (plots.bandwidth, ("mix", "cross_entropy")),
    "memory": (plots.memory, ("mix", "cross_entropy")),
    "scaling": (plots.scaling, ("scaling",)),
}
MEASURED = ("mix", "cross_entropy", "losses", "step", "linear", "sharded")
INTRO = """# Benchmark results

Written by `python -m benchmarks report` from the data files in `results/`. Do not edit by hand.

- us: time of a call, the median of interleaved rounds.
- ±: half the interquartile range. Where it exceeds 10 % for ours, the measurement was repeated, up
  to three times, and the least scattered one is shown.
- GB/s: compulsory bytes (what any implementation must read and write) over that time.
- of copy: that rate over the rate of a copy between two large buffers in the same run. More than
  100 % means that the data was in a cache.
- A baseline's column: its time over ours. (goal ...) is the ratio aimed at, where it was missed.
- cache: warm, the same input again; cold, inputs in turn, more than the last-level cache holds.
  There is no cold row where one input fills that cache, or where the input is so small that a
  training step has just written it.
- threads: for rows with their own number of threads.
- memory: peak bytes allocated, ours / the first baseline's. Of a linear head: inputs included, in
  multiples of the inputs and their gradients.
- collectives: forward+backward, ours / the first baseline's. B a row and rank: what they bring to a
  rank for each row, of an all-reduce what a ring brings.
- compile s: the first call of the compiled baseline minus a later one.
"""


def machine_line(data: dict) -> str:
    m, commit = data["machine_info"], data["commit_info"]
    line = (
        f"{m['device_name']} ({front_page.cpu_of(m)}), "
        f"torch {m['torch']}, copy {m['copy_gb_per_s']:.3g} GB/s, "
        f"{'--quick, ' if m['quick'] else ''}commit {commit['id'][:10]}"
        f"{' with changes' if commit['dirty'] else ''}, {data['datetime'][:10]}. {tables.busy(m)}"
    )
    return line.rstrip()


def machine_lines(data: dict[str, dict]) -> str:
    """One line if all files are of one machine and day, else a list."""
    files: dict[str, list[str]] = {}
    for name, one in data.items():
        files.setdefault(machine_line(one), []).append(name)
    if len(files) == 1:
        return next(iter(files))
    return "\n".join(f"- {', '.join(names)}: {line}" for line, names in files.items())


def is_small(row: Row) -> bool:
    return row.op.endswith("small call")


def training(content: dict) -> str:
    body = []
    for row in content["rows"]:
        error, nll = (mean(run[key] for run in row["runs"]) for key in ("error", "nll"))
        body.append([row["method"], f"{error:.2f}", f"{nll:.3f}"])
    seeds = len(content["rows"][0]["runs"])
    head = [f"mean of {seeds} seed{'s' * (seeds > 1)}", "test error %", "test NLL"]
    return tables.markdown_table(head, body)


def performance_blocks(data: dict[str, dict]) -> dict[str, str]:
    """Marker -> its block in docs/performance.md.

    Warm caches and float32; CutMix of bytes too, and the losses, where other dtypes are separate
    cases. RESULTS.md has the rest, and the goals.
    """
    every = {name: rows(data[name]["benchmarks"]) for name in MEASURED}

    def shown(some: list[Row], dtypes: tuple[str, ...] = ("float32",)) -> str:
        kept = [r for r in some if r.dtype in dtypes and r.cache == "warm"]
        return tables.markdown(kept, ("cache", "compile s"), goals=False)

    heads = [r for r in every["linear"] if r.op != linear.SWEEP]
    timed = [row for name in ("mix", "cross_entropy") for row in every[name]]
    return {
        "machine": machine_lines({name: data[name] for name in MEASURED}),
        "mix": shown([r for r in every["mix"] if not is_small(r)], ("float32", "uint8")),
        "cross_entropy": shown([r for r in every["cross_entropy"] if not is_small(r)]),
        "losses": shown(every["losses"], tuple(dict.fromkeys(r.dtype for r in every["losses"]))),
        "small": shown([r for r in timed if is_small(r)]),
        "step": shown(every["step"]),
        "linear": shown(heads, tuple(dict.fromkeys(r.dtype for r in heads))),
        "sharded": shown(every["sharded"]),
    }


def gpu_block(gpus: dict[str, dict]) -> str:
    """Folder of a GPU's results -> its data file, as one table for each GPU."""
    parts = []
    for folder, data in gpus.items():
        machine = data["machine"]
        page = f"../benchmarks/results/{folder}/gpu.md"
        parts.append(
            f"**{machine['gpu']}**, {machine['when'][:10]}, torch {machine['torch']}, "
            f"Triton {machine['triton']}; a copy moves {data['copy_gb_per_s']:.4g} GB/s. "
            f"[All of it]({page}).\n\n{gpu_report.short_markdown(data)}"
        )
    return "\n\n".join(parts) or "No GPU was measured."


def replace_blocks(page: str, text: str, blocks: dict[str, str]) -> str:
    """The text with new content between ``<!-- name -->`` and ``<!-- end of name -->``."""
    for name, new in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.S)
        text, count = pattern.subn(lambda _, b=begin, n=new, e=end: f"{b}\n\n{n}\n\n{e}", text)
        if count != 1:
            raise datafile.BadFile(f"{page} must hold {begin} and {end} once, found {count}")
    return text


def results_page(data: dict[str, dict]) -> str:
    parts = [INTRO]
    parts += [f"![{name}](results/{name}.png)\n" for name in PICTURES]
    for name, one in data.items():
        command = name.removesuffix("_cuda") + (" --device cuda" if name.endswith("_cuda") else "")
        parts.append(f"## {name}\n\n`python -m benchmarks {command}`: {machine_line(one)}\n")
        parts.append(tables.markdown(rows(one["benchmarks"])) + "\n")
    return "\n".join(parts)


class Data(NamedTuple):
    """All data files."""

    measured: dict[str, dict]
    cuda: dict[str, dict]  # of --device cuda
    gpus: dict[str, dict]  # folder -> what `make gpu` wrote there
    trained: dict
    claims: dict[str, dict]

    def lines(self) -> list[front_page.Line]:
        newest = max(self.gpus.values(), key=lambda one: one["machine"]["when"], default=None)
        return front_page.selected(self.measured, newest)


def read(root: Path) -> Data:
    results = root / "benchmarks/results"
    names = dict.fromkeys([*(n for _, some in PICTURES.values() for n in some), *MEASURED])
    return Data(
        {name: datafile.read(results / f"{name}.json") for name in names},
        {p.stem: datafile.read(p) for p in sorted(results.glob("*_cuda.json"))},
        {p.parent.name: datafile.parse(p) for p in sorted(results.glob("*/gpu.json"))},
        datafile.read_rows(results / "training.json", ("error", "nll")),
        paper.read(results),
    )


def texts(root: Path, data: Data) -> dict[str, str]:
    """Path of a page -> its text."""
    performance = performance_blocks(data.measured)
    performance |= {"training": training(data.trained), "gpu": gpu_block(data.gpus)}
    blocks = {
        README: {
            "paper": front_page.paper(published.read()),
            "performance": front_page.table(data.lines()),
        },
        PERFORMANCE_PAGE: performance,
    }
    found = {
        page: replace_blocks(page, (root / page).read_text(), some) for page, some in blocks.items()
    }
    return found | {
        RESULTS_PAGE: results_page(data.measured | data.cuda),
        PAPER_PAGE: paper.page(data.claims),
    }


def pictures(data: Data) -> dict[str, bytes]:
    """Name of a picture -> its PNG."""
    measured, spiral = data.measured, data.claims["spiral"]["rows"]
    found = {name: draw([measured[n] for n in of]) for name, (draw, of) in PICTURES.items()}
    return found | {
        "idea": idea.picture(spiral),
        "speed": front_page.picture(data.lines()),
        "paper_spiral": plots.spiral(spiral),
        "test_nll": plots.test_nll(data.trained["rows"]),
    }


def main(root: Path = ROOT) -> None:
    data = read(root)
    new: dict[Path, str | bytes] = {root / page: text for page, text in texts(root, data).items()}
    for name, drawn in pictures(data).items():
        new[root / f"benchmarks/results/{name}.png"] = drawn
    for path, content in new.items():
        datafile.write(path, content)
    print(f"written: {', '.join(str(path.relative_to(root)) for path in new)}")
