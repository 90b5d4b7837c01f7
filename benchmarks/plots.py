"""Pictures of the data files, as PNG. The report writes them once all are drawn."""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib

matplotlib.use("Agg")  # works without a display

from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from PIL import Image

from .problem import OURS
from .rows import Row, rows

DPI = 96
PALETTE = 256  # a PNG of so many colours takes a third of the bytes and looks the same
COLUMNS = 2  # panels side by side: 10 inches at DPI are as wide as a README is shown

# An implementation has the same colour in every picture.
COLORS = {OURS: "black", "eager": "C0", "two terms": "C0", "compiled": "C1", "lerp": "C2"}
COLORS |= {"timm in place": "C3", "soft targets": "C4", "torchvision roll": "C5", "mul_": "C7"}
COLORS |= {"x * lam": "C7", "Liger-Kernel": "C8", "quack": "C9"}


def png(figure) -> bytes:
    figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.05)
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(PALETTE, Image.Quantize.FASTOCTREE).save(
        small, format="png", optimize=True
    )
    return small.getvalue()


def panels(groups: dict[str, list[Row]], draw: Callable, y: str) -> bytes:
    """One panel for each group of rows; both axes are logarithmic."""
    lines = -(-len(groups) // COLUMNS)
    figure, axes = plt.subplots(lines, COLUMNS, figsize=(10, 3 * lines), squeeze=False)
    for panel in axes.flat[len(groups) :]:
        panel.set_axis_off()
    for panel, (title, group) in zip(axes.flat, groups.items(), strict=False):
        panel.set_xlabel(group[0].axis, fontsize=9)
        panel.set_title(title, fontsize=10)
        panel.set(xscale="log", yscale="log")
        draw(panel, group)
        for axis in (panel.xaxis, panel.yaxis):
            set_ticks(axis)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    for first in axes[:, 0]:
        first.set_ylabel(y, fontsize=9)
    return png(figure)


def set_ticks(axis) -> None:
    """Labels such as 200, 5k, 10M on a logarithmic axis, and some even on a short one."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(EngFormatter(sep="") if high >= 1000 else "{x:g}")
    axis.set_tick_params(labelsize=8)


def by_op(data: list[dict]) -> dict[str, list[Row]]:
    """op -> its float32 rows, for each op that was measured at more than one size.

    Rows with their own number of threads are left to the tables.
    """
    groups: dict[str, list[Row]] = {}
    for row in (r for d in data for r in rows(d["benchmarks"])):
        if row.dtype == "float32" and not row.threads:
            groups.setdefault(row.op, []).append(row)
    return {op: group for op, group in groups.items() if len({r.shape for r in group}) > 1}


def curves(panel, group: list[Row], value: Callable[[dict], float], names: list[str]) -> None:
    for name in names:
        points = sorted((r.size, value(r.records[name])) for r in group if name in r.records)
        panel.plot(*zip(*points, strict=True), "o-", label=name, color=COLORS.get(name), ms=3)


def warm(group: list[Row]) -> list[Row]:
    return [row for row in group if row.cache == "warm"]


def baselines_of(group: list[Row]) -> list[str]:
    return [name for name in group[0].records if name != OURS]


def speedup(data: list[dict]) -> bytes:
    def draw(panel, group: list[Row]) -> None:
        shown = warm(group)
        curves(panel, shown, lambda r: r["extra_info"]["ratio"], baselines_of(shown))
        panel.axhline(1, color="black", linewidth=0.8)

    return panels(by_op(data), draw, "time of the baseline / ours")


def bandwidth(data: list[dict]) -> bytes:
    def draw(panel, group: list[Row]) -> None:
        extra = group[0].ours["extra_info"]
        ceiling = extra["gb_per_s"] / extra["share_of_copy"]  # that of the group's own data file
        for cache, style in (("warm", "o-"), ("cold", "s--")):
            points = sorted(
                (r.size, r.ours["extra_info"]["gb_per_s"]) for r in group if r.cache == cache
            )
            if points:
                panel.plot(*zip(*points, strict=True), style, label=f"ours, {cache}", color="C0")
        panel.axhline(ceiling, color="black", linewidth=0.8, label="copy in memory")

    moving = {op: g for op, g in by_op(data).items() if "gb_per_s" in g[0].ours["extra_info"]}
    return panels(moving, draw, "GB/s of compulsory bytes")


def memory(data: list[dict]) -> bytes:
    def draw(panel, group: list[Row]) -> None:
        shown = warm(group)
        # A logarithmic axis has no 0: less than one byte is drawn as one.
        peak = lambda r: max(1, r["extra_info"]["peak_bytes"])  # noqa: E731
        curves(panel, shown, peak, [OURS, *baselines_of(shown)])

    return panels(by_op(data), draw, "peak bytes allocated")


def scaling(data: list[dict]) -> bytes:
    def draw(panel, group: list[Row]) -> None:
        names = [OURS, *baselines_of(group)]
        curves(panel, group, lambda r: 1e6 * r["stats"]["median"], names)

    return panels(by_op(data), draw, "time of a call, us")


def decision(panel, row: dict, points: list, labels: list) -> None:
    """The network's confidence in the plane (red or blue), and its training points."""
    cells = round(len(row["confidence"]) ** 0.5)
    confidence = [row["confidence"][i * cells : (i + 1) * cells] for i in range(cells)]
    image = [list(line) for line in zip(*confidence, strict=True)]  # x runs to the right
    box = (-1.2, 1.2, -1.2, 1.2)
    panel.imshow(image, origin="lower", extent=box, cmap="RdBu", vmin=0, vmax=1)
    panel.scatter(*points, s=3, c=labels, cmap="bwr_r")
    panel.set(xticks=[], yticks=[])
    panel.set_title(row["method"], fontsize=9)


def spiral(methods: list[dict]) -> bytes:
    """For each method: its decision in the plane, and its 2-D hidden layer."""
    size = (1.6 * len(methods), 3.6)
    figure, axes = plt.subplots(2, len(methods), figsize=size, squeeze=False)
    points, labels = methods[0]["points"], methods[0]["labels"]
    for (above, below), row in zip(axes.T, methods, strict=True):
        decision(above, row, points, labels)
        below.scatter(*row["hidden"], s=3, c=labels, cmap="bwr_r")
        below.set(xticks=[], yticks=[])
        below.set_xlabel(f"below 90 %: {100 * row['low_confidence']:.0f} %", fontsize=9)
    axes[0][0].set_ylabel("decision")
    axes[1][0].set_ylabel("2-D hidden layer")
    return png(figure)


def test_nll(methods: list[dict]) -> bytes:
    figure, axes = plt.subplots(figsize=(5, 3))
    for i, row in enumerate(methods):
        values = [run["nll"] for run in row["runs"]]
        axes.bar(i, sum(values) / len(values), color=f"C{i}")
        axes.plot([i] * len(values), values, "k.")
    axes.set_xticks(range(len(methods)), [row["method"] for row in methods])
    axes.set_ylabel("test NLL, 4,000 digits (lower is better)")
    return png(figure)
