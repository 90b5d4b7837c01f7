"""Writes README.md's tables, RESULTS.md, PAPER.md and the pictures from the data files.

Everything is made first and written last: if a data file is bad, nothing changes.
"""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean

from . import datafile, plots, tables
from .paper import report as paper
from .problems import linear
from .rows import Row, rows

ROOT = Path(__file__).parents[1]
RESULTS_PAGE, PAPER_PAGE = "benchmarks/RESULTS.md", "benchmarks/PAPER.md"
# picture -> (what draws it, the data files it takes)
PICTURES = {
    "speedup": (plots.speedup, ("mix", "cross_entropy")),
    "bandwidth": (plots.bandwidth, ("mix", "cross_entropy")),
    "memory": (plots.memory, ("mix", "cross_entropy")),
    "scaling": (plots.scaling, ("scaling",)),
}
IN_README = ("mix", "cross_entropy", "losses", "step", "linear", "sharded")
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
        f"{m['device_name']} ({m['cpu'].get('brand_raw', m['machine'])}, {m['capability']}), "
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


def readme_blocks(data: dict[str, dict]) -> dict[str, str]:
    """Marker -> its block in README.md.

    Warm caches and float32; CutMix of bytes too, and the losses, where other dtypes are separate
    cases. RESULTS.md has the rest.
    """
    every = {name: rows(data[name]["benchmarks"]) for name in IN_README}

    def shown(some: list[Row], dtypes: tuple[str, ...] = ("float32",)) -> str:
        return tables.markdown(
            [r for r in some if r.dtype in dtypes and r.cache == "warm"], ("cache", "compile s")
        )

    heads = [r for r in every["linear"] if r.op != linear.SWEEP]
    timed = [row for name in ("mix", "cross_entropy") for row in every[name]]
    return {
        "machine": machine_lines({name: data[name] for name in IN_README}),
        "mix": shown([r for r in every["mix"] if not is_small(r)], ("float32", "uint8")),
        "cross_entropy": shown([r for r in every["cross_entropy"] if not is_small(r)]),
        "losses": shown(every["losses"], tuple(dict.fromkeys(r.dtype for r in every["losses"]))),
        "small": shown([r for r in timed if is_small(r)]),
        "step": shown(every["step"]),
        "linear": shown(heads, tuple(dict.fromkeys(r.dtype for r in heads))),
        "sharded": shown(every["sharded"]),
    }


def replace_blocks(text: str, blocks: dict[str, str]) -> str:
    """The text with new content between ``<!-- name -->`` and ``<!-- end of name -->``."""
    for name, new in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.S)
        text, count = pattern.subn(lambda _, b=begin, n=new, e=end: f"{b}\n\n{n}\n\n{e}", text)
        if count != 1:
            raise datafile.BadFile(f"README.md must hold {begin} and {end} once, found {count}")
    return text


def results_page(data: dict[str, dict]) -> str:
    parts = [INTRO]
    parts += [f"![{name}](results/{name}.png)\n" for name in PICTURES]
    for name, one in data.items():
        command = name.removesuffix("_cuda") + (" --device cuda" if name.endswith("_cuda") else "")
        parts.append(f"## {name}\n\n`python -m benchmarks {command}`: {machine_line(one)}\n")
        parts.append(tables.markdown(rows(one["benchmarks"])) + "\n")
    return "\n".join(parts)


def main(root: Path = ROOT) -> None:
    results = root / "benchmarks/results"
    names = [
        *dict.fromkeys(n for _, (_, some) in PICTURES.items() for n in some),
        "losses",
        "step",
        "linear",
        "sharded",
    ]
    data = {name: datafile.read(results / f"{name}.json") for name in names}
    cuda = {p.stem: datafile.read(p) for p in sorted(results.glob("*_cuda.json"))}
    trained = datafile.read_rows(results / "training.json", ("error", "nll"))
    claims = paper.read(results)
    readme = (root / "README.md").read_text()
    spiral = claims["spiral"]["rows"]
    pictures = {name: draw([data[n] for n in of]) for name, (draw, of) in PICTURES.items()}
    pictures["hero"] = plots.hero([data["mix"], data["cross_entropy"]], spiral)
    pictures["paper_spiral"] = plots.spiral(spiral)
    pictures["test_nll"] = plots.test_nll(trained["rows"])
    new: dict[Path, str | bytes] = {
        root / "README.md": replace_blocks(
            readme, readme_blocks(data) | {"training": training(trained)}
        ),
        root / RESULTS_PAGE: results_page(data | cuda),
        root / PAPER_PAGE: paper.page(claims),
    }
    new |= {results / f"{name}.png": picture for name, picture in pictures.items()}
    for path, content in new.items():
        datafile.write(path, content)
    print(f"written: {', '.join(str(path.relative_to(root)) for path in new)}")
