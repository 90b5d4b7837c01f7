"""Pictures from the data files of harness.save."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot as plt

from .harness import RESULTS


def speedups(rows: list[dict]) -> None:
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.5))
    names = [n for n in ("eager", "timm in place", "lerp", "compiled") if n in rows[0]["ratio"]]
    height = 0.8 / len(names)
    for k, name in enumerate(names):
        have = [
            (i + k * height, r["ratio"][name]) for i, r in enumerate(rows) if name in r["ratio"]
        ]
        axes.barh([h[0] + k * height for h in have], [h[1] for h in have], height, label=name)
    axes.set_yticks([i + 0.3 for i in range(len(rows))], [r["title"] for r in rows], fontsize=7)
    axes.set_xscale("log")
    axes.axvline(1, color="black")
    axes.set_xlabel("time of the rival / time of mmix_fast (2 threads)")
    axes.invert_yaxis()
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(RESULTS / "speedups.png", dpi=110)


def test_nll(rows: list[dict]) -> None:
    figure, axes = plt.subplots(figsize=(5, 3))
    for i, row in enumerate(rows):
        values = [r["nll"] for r in row["runs"]]
        axes.bar(i, sum(values) / len(values), color=f"C{i}")
        axes.plot([i] * len(values), values, "k.")
    axes.set_xticks(range(len(rows)), [r["method"] for r in rows])
    axes.set_ylabel("test NLL, 4,000 digits (lower is better)")
    figure.tight_layout()
    figure.savefig(RESULTS / "test_nll.png", dpi=110)
