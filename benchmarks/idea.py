"""The README's first picture: a batch mixed at a drawn layer, and the decisions that follow."""

from __future__ import annotations

from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from .plots import decision, png

# Whose decisions are shown, and how they are called.
METHODS = {"ERM": "without mixup", "Input Mixup": "Input Mixup", "Manifold Mixup": "Manifold Mixup"}
SAMPLES = ("C0", "C1", "C2", "C4")  # a colour for each sample of the batch
PERM = (2, 0, 3, 1)
LAM = 0.7
NETWORK = ("input", "layer 1", "layer 2", "layer 3")
DRAWN = 2  # the layer of this batch
SIDE = 0.42  # of the square that stands for a sample


def blend(k: int) -> tuple[float, ...]:
    own, partner = (colors.to_rgb(SAMPLES[i]) for i in (k, PERM[k]))
    return tuple(LAM * a + (1 - LAM) * b for a, b in zip(own, partner, strict=True))


def batch(panel, left: float, bottom: float, fills: list, text: str) -> None:
    """A column of squares, one for each sample."""
    for k, fill in enumerate(fills):
        y = bottom + (len(fills) - 1 - k) * SIDE
        panel.add_patch(Rectangle((left, y), SIDE, SIDE, facecolor=fill, edgecolor="white"))
    panel.text(left + SIDE / 2, bottom - 0.12, text, ha="center", va="top", fontsize=9)


def arrow(panel, begin: tuple[float, float], end: tuple[float, float], color: str) -> None:
    panel.add_patch(
        FancyArrowPatch(begin, end, arrowstyle="-|>", mutation_scale=9, color=color, linewidth=1)
    )


def network(panel) -> None:
    """The layers from left to right; the drawn one is filled."""
    width, gap, bottom, height = 1.15, 0.4, 3.1, 0.6
    for k, name in enumerate((*NETWORK, "loss")):
        left = k * (width + gap)
        drawn = k == DRAWN
        panel.add_patch(
            FancyBboxPatch(
                (left, bottom),
                width,
                height,
                boxstyle="round,pad=0.02",
                facecolor="#ffe2b8" if drawn else "white",
                edgecolor="C1" if drawn else "gray",
            )
        )
        middle = bottom + height / 2
        panel.text(left + width / 2, middle, name, ha="center", va="center", fontsize=9)
        if k:
            arrow(panel, (left - gap, middle), (left - 0.02, middle), "gray")
    drawn_middle = DRAWN * (width + gap) + width / 2
    arrow(panel, (drawn_middle, bottom - 0.05), (drawn_middle, 2.25), "C1")
    panel.text(
        drawn_middle + 0.15, 2.75, "drawn for this batch", va="top", fontsize=8, color="#b35900"
    )


def mixing(panel) -> None:
    """h, h[perm] and their mix, as columns of samples."""
    bottom = 0.45
    own = list(SAMPLES)
    shuffled = [SAMPLES[i] for i in PERM]
    middle = bottom + 2 * SIDE
    for left, fills, text in (
        (0.7, own, "h"),
        (3.3, shuffled, "h[perm]"),
        (5.0, [blend(k) for k in range(len(SAMPLES))], "mixed h"),
    ):
        batch(panel, left, bottom, fills, text)
    for x, text in ((0.35, "λ"), (2.2, "+   (1 − λ)"), (4.35, "=")):
        panel.text(x, middle, text, ha="center", va="center", fontsize=11)
    panel.text(
        5.75,
        middle,
        "labels: the same\nλ and perm;\nλ ~ Beta(α, α)",
        va="center",
        fontsize=8,
    )


def picture(methods: list[dict]) -> bytes:
    """``methods``: the rows of the spiral's data file."""
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.5), width_ratios=(2.6, 1, 1, 1))
    panel = axes[0]
    panel.set(xlim=(-0.1, 7.6), ylim=(0, 3.9))
    panel.set_axis_off()
    network(panel)
    mixing(panel)
    shown = [row for row in methods if row["method"] in METHODS]
    for one, row in zip(axes[1:], shown, strict=False):
        decision(one, row, methods[0]["points"], methods[0]["labels"])
        one.set_title(METHODS[row["method"]], fontsize=9)
        share = f"{100 * row['low_confidence']:.0f} % of the plane"
        one.set_xlabel(f"{share}\nbelow 90 % confidence", fontsize=8)
    return png(figure)
