"""Pictures of data files, as SVG text: the report writes them when all are made."""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot as plt

from .problem import OURS
from .rows import Row, rows

plt.rcParams["svg.hashsalt"] = "mmix_fast"  # the same data gives the same file
plt.rcParams["svg.fonttype"] = "none"  # letters, not their outlines: a third of the size

# A baseline has one colour in every picture.
COLORS = {OURS: "black", "eager": "C0", "two terms": "C0", "compiled": "C1", "lerp": "C2"}
COLORS |= {"timm in place": "C3", "soft targets": "C4", "torchvision roll": "C5", "mul_": "C7"}
COLORS |= {"x * lam": "C7", "Liger-Kernel": "C8", "quack": "C9"}


def svg(figure) -> str:
    figure.tight_layout()
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    # Trailing blanks of matplotlib's paths would be there in each diff.
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def panels(groups: dict[str, list[Row]], draw: Callable, y: str) -> str:
    figure, axes = plt.subplots(1, len(groups), figsize=(4.2 * len(groups), 3.6), squeeze=False)
    for panel, (title, some) in zip(axes[0], groups.items(), strict=True):
        panel.set(title=title, xlabel=some[0].axis, xscale="log", yscale="log")
        draw(panel, some)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_minor_formatter("")  # 2x10^6, 3x10^6, ... would overlap
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    axes[0][0].set_ylabel(y)
    return svg(figure)


def by_op(data: list[dict]) -> dict[str, list[Row]]:
    """float32 rows of each op that has more than one size."""
    groups: dict[str, list[Row]] = {}
    for row in (r for d in data for r in rows(d["benchmarks"])):
        if row.dtype == "float32":
            groups.setdefault(row.op, []).append(row)
    return {op: some for op, some in groups.items() if len({r.shape for r in some}) > 1}


def lines(panel, some: list[Row], value: Callable[[dict], float], names: list[str]) -> None:
    for name in names:
        points = sorted((r.size, value(r.records[name])) for r in some if name in r.records)
        panel.plot(*zip(*points, strict=True), "o-", label=name, color=COLORS.get(name), ms=3)


def baselines_of(some: list[Row]) -> list[str]:
    return [name for name in some[0].records if name != OURS]


def speedup(data: list[dict]) -> str:
    def draw(panel, some: list[Row]) -> None:
        warm = [r for r in some if r.cache == "warm"]
        lines(panel, warm, lambda r: r["extra_info"]["ratio"], baselines_of(warm))
        panel.axhline(1, color="black", linewidth=0.8)

    return panels(by_op(data), draw, "time of the baseline / ours")


def bandwidth(data: list[dict]) -> str:
    ceiling = data[0]["machine_info"]["copy_gb_per_s"]

    def draw(panel, some: list[Row]) -> None:
        for cache, style in (("warm", "o-"), ("cold", "s--")):
            points = sorted(
                (r.size, r.ours["extra_info"]["gb_per_s"]) for r in some if r.cache == cache
            )
            if points:
                panel.plot(*zip(*points, strict=True), style, label=f"ours, {cache}", color="C0")
        panel.axhline(ceiling, color="black", linewidth=0.8, label="copy in memory")

    moving = {op: s for op, s in by_op(data).items() if "gb_per_s" in s[0].ours["extra_info"]}
    return panels(moving, draw, "GB/s of compulsory bytes")


def memory(data: list[dict]) -> str:
    def draw(panel, some: list[Row]) -> None:
        warm = [r for r in some if r.cache == "warm"]
        # An axis of logarithms has no 0: less than a byte is drawn as one.
        peak = lambda r: max(1, r["extra_info"]["peak_bytes"])  # noqa: E731
        lines(panel, warm, peak, [OURS, *baselines_of(warm)])

    return panels(by_op(data), draw, "peak bytes allocated")


def scaling(data: list[dict]) -> str:
    def draw(panel, some: list[Row]) -> None:
        lines(panel, some, lambda r: 1e6 * r["stats"]["median"], [OURS, *baselines_of(some)])

    return panels(by_op(data), draw, "us of a call")


def decision(panel, row: dict, points: list, labels: list) -> None:
    """How sure a network is of red or blue in the plane, and the points it was trained on."""
    cells = round(len(row["confidence"]) ** 0.5)
    confidence = [row["confidence"][i * cells : (i + 1) * cells] for i in range(cells)]
    image = [list(line) for line in zip(*confidence, strict=True)]  # x runs to the right
    box = (-1.2, 1.2, -1.2, 1.2)
    panel.imshow(image, origin="lower", extent=box, cmap="RdBu", vmin=0, vmax=1)
    panel.scatter(*points, s=3, c=labels, cmap="bwr_r")
    panel.set(xticks=[], yticks=[])
    panel.set_title(row["method"], fontsize=9)


# What the README's first picture shows: the decision of three methods, and three ops' speed.
HERO_METHODS = ("ERM", "Input Mixup", "Manifold Mixup")
HERO_OPS = ("mix_ forward", "mix forward+backward", "cross-entropy in place")


def hero(data: list[dict], spiral: list[dict]) -> str:
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.6), width_ratios=(1, 1, 1, 1.2))
    some = [row for row in spiral if row["method"] in HERO_METHODS]
    for panel, row in zip(axes, some, strict=False):
        decision(panel, row, spiral[0]["points"], spiral[0]["labels"])
        panel.set_xlabel(f"unsure: {100 * row['low_confidence']:.0f} % of the plane", fontsize=8)
    groups = by_op(data)
    largest = [
        max((r for r in groups[op] if r.cache == "warm"), key=lambda r: r.size)
        for op in HERO_OPS
        if op in groups
    ]
    for shift, color, names in ((-0.2, "C0", ("eager", "two terms")), (0.2, "C1", ("compiled",))):
        found = [next(row.records[n] for n in names if n in row.records) for row in largest]
        ratios = [record["extra_info"]["ratio"] for record in found]
        bars = axes[3].barh([k + shift for k in range(len(found))], ratios, 0.4, color=color)
        axes[3].bar_label(bars, [f"{r:.1f}x" for r in ratios], fontsize=7, padding=2)
        bars.set_label(names[0])
    axes[3].set_yticks(range(len(largest)), [f"{r.op}\n{r.shape}" for r in largest], fontsize=7)
    axes[3].invert_yaxis()
    axes[3].margins(x=0.25)
    axes[3].set_xlabel("PyTorch's time / ours", fontsize=8)
    axes[3].legend(fontsize=7, loc="lower right")
    return svg(figure)


def test_nll(runs: list[dict]) -> str:
    figure, axes = plt.subplots(figsize=(5, 3))
    for i, row in enumerate(runs):
        values = [r["nll"] for r in row["runs"]]
        axes.bar(i, sum(values) / len(values), color=f"C{i}")
        axes.plot([i] * len(values), values, "k.")
    axes.set_xticks(range(len(runs)), [r["method"] for r in runs])
    axes.set_ylabel("test NLL, 4,000 digits (lower is better)")
    return svg(figure)
