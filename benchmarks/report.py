"""Data files -> README.md's tables, benchmarks/RESULTS.md and the pictures, or nothing of these."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean

from . import datafile, plots, tables
from .rows import Row, rows

ROOT = Path(__file__).parents[1]
RESULTS_PAGE = "benchmarks/RESULTS.md"
PICTURES = {
    "speedup": (plots.speedup, ("mix", "cross_entropy")),
    "bandwidth": (plots.bandwidth, ("mix", "cross_entropy")),
    "memory": (plots.memory, ("mix", "cross_entropy")),
    "scaling": (plots.scaling, ("scaling",)),
}
INTRO = """# What was measured

Made by `python -m benchmarks report` from the data files in `results/`; no number here is written
by hand. A baseline's cell is its time over ours; a goal of ours that is missed stands beside it.
`us`: median of interleaved rounds; ±: half the distance of the quartiles; where ours is more than
10 %, the calmest of three measurements stands here. GB/s: compulsory bytes
over that time; `of copy`: their share of what a copy between two large buffers moved in the same
run (more than 100 %: the data lay in a cache). warm: the same input again; cold: inputs in turn,
more than the last cache holds; left out where one input fills the cache alone, or is so small that
a training step has just written it. threads: where a row has a count of its own. memory: peak of
what is allocated, ours / the first baseline's.
compile s: what the first call of the compiled baseline took beyond a later one.
"""


def machine_line(data: dict) -> str:
    m, commit = data["machine_info"], data["commit_info"]
    return (
        f"{m['device_name']} ({m['cpu'].get('brand_raw', m['machine'])}, {m['capability']}), "
        f"torch {m['torch']}, copy {m['copy_gb_per_s']:.3g} GB/s, "
        f"{'--quick, ' if m['quick'] else ''}commit {commit['id'][:10]}"
        f"{' with changes' if commit['dirty'] else ''}, {data['datetime'][:10]}. {tables.busy(m)}"
    )


def machine_lines(data: dict[str, dict]) -> str:
    """One line, or one for the files of each machine and day: ratios of two are not compared."""
    files: dict[str, list[str]] = {}
    for name, one in data.items():
        files.setdefault(machine_line(one), []).append(name)
    if len(files) == 1:
        return next(iter(files))
    return "\n".join(f"- {', '.join(names)}: {line}" for line, names in files.items())


def is_small(row: Row) -> bool:
    return row.op.endswith("small call")


def misses(some: list[Row]) -> str:
    asked = sum(1 for row in some for r in row.records.values() if "goal" in r["extra_info"])
    missed = sum(len(row.missed) for row in some)
    return f"{asked - missed} of {asked} goals met over all dtypes."


def training(content: dict) -> str:
    parts = []
    for row in content["rows"]:
        error, nll = (mean(r[key] for r in row["runs"]) for key in ("error", "nll"))
        parts.append(f"{row['method']} {error:.2f} % / {nll:.3f}")
    seeds = len(content["rows"][0]["runs"])
    return f"Test error / NLL, means of {seeds} seeds: {', '.join(parts)}."


def readme_blocks(data: dict[str, dict]) -> dict[str, str]:
    """Marker -> what README.md shows of it: float32, warm; the rest is in RESULTS.md. Of the losses
    all is shown: their other dtypes are cases of their own."""
    names = ("mix", "cross_entropy", "losses", "step")
    every = {name: rows(data[name]["benchmarks"]) for name in names}

    def shown(some: list[Row], dtypes: tuple[str, ...] = ("float32",)) -> str:
        return tables.markdown(
            [r for r in some if r.dtype in dtypes and r.cache == "warm"], ("cache", "compile s")
        )

    found = {
        name: f"{shown([r for r in every[name] if not is_small(r)])}\n\n{misses(every[name])}"
        for name in ("mix", "cross_entropy")
    }
    dtypes = tuple(dict.fromkeys(r.dtype for r in every["losses"]))
    found["losses"] = f"{shown(every['losses'], dtypes)}\n\n{misses(every['losses'])}"
    small = [r for name in ("mix", "cross_entropy") for r in every[name] if is_small(r)]
    return found | {
        "machine": machine_lines({name: data[name] for name in names}),
        "small": shown(small),
        "step": shown(every["step"]),
    }


def replace_blocks(text: str, found: dict[str, str]) -> str:
    for name, new in found.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.S)
        text, count = pattern.subn(lambda _, b=begin, n=new, e=end: f"{b}\n\n{n}\n\n{e}", text)
        if count != 1:
            raise datafile.BadFile(f"README.md must hold {begin} and {end} once, found {count}")
    return text


def results_page(data: dict[str, dict], drawn: dict[str, str]) -> str:
    parts = [INTRO]
    parts += [f"![{name}](results/{name}.svg)\n" for name in drawn]
    for name, one in data.items():
        parts.append(f"## {name}\n\n{machine_line(one)}\n")
        parts.append(tables.markdown(rows(one["benchmarks"])) + "\n")
    return "\n".join(parts)


def main(root: Path = ROOT) -> None:
    results = root / "benchmarks/results"
    names = [*dict.fromkeys(n for _, (_, some) in PICTURES.items() for n in some), "losses", "step"]
    data = {name: datafile.read(results / f"{name}.json") for name in names}
    trained = datafile.read_rows(results / "training.json", ("error", "nll"))
    spiral = datafile.read_rows(results / "paper_spiral.json", ("confidence", "low_confidence"))
    drawn = {name: draw([data[n] for n in of]) for name, (draw, of) in PICTURES.items()}
    cuda = {p.stem: datafile.read(p) for p in sorted(results.glob("*_cuda.json"))}
    new = {
        root / "README.md": replace_blocks(
            (root / "README.md").read_text(), readme_blocks(data) | {"training": training(trained)}
        ),
        root / RESULTS_PAGE: results_page(data | cuda, drawn),
        results / "hero.svg": plots.hero([data["mix"], data["cross_entropy"]], spiral["rows"]),
        results / "test_nll.svg": plots.test_nll(trained["rows"]),
        **{results / f"{name}.svg": text for name, text in drawn.items()},
    }
    for path, text in new.items():  # all are made: now they are written
        datafile.write(path, text)
    print(f"written: {', '.join(str(path.relative_to(root)) for path in new)}")
