"""Test error and NLL of every method, and how they depend on alpha and on the layers."""

from __future__ import annotations

from dataclasses import replace

from ..datafile import save_rows
from .train import MANIFOLD, METHODS, best_rate, data, fit, summary, test

SETS = ("mnist", "digits", "cancer")
LAYERS = ((), ("",), ("act1",), ("act2",), ("", "act1"), ("act1", "act2"), ("", "act1", "act2"))
ALPHAS = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)


def row(name: str, method, seeds: int, **more) -> dict:
    dataset, rate = data(name), best_rate(name, method)
    runs = [
        test(fit(dataset, method, rate, s), dataset.test_x, dataset.test_y) for s in range(seeds)
    ]
    (error, error_se), (nll, nll_se) = (summary([r[k] for r in runs]) for k in ("error", "nll"))
    print(
        f"{name:<8}{method.name:<16}{error:>7.2f} ±{error_se:.2f} %{nll:>9.4f} ±{nll_se:.4f}"
        f"  rate {rate} {more or ''}",
        flush=True,
    )
    return {"data": name, "method": method.name, "rate": rate, "runs": runs, **more}


def errors(seeds: int) -> None:
    save_rows("paper_generalization", [row(n, m, seeds) for n in SETS for m in METHODS])


def ablation(seeds: int) -> None:
    rows = [
        row("digits", replace(MANIFOLD, layers=layers), seeds, layers=list(layers), alpha=2.0)
        for layers in LAYERS
    ]
    rows += [row("digits", replace(MANIFOLD, alpha=a), seeds, alpha=a) for a in ALPHAS]
    save_rows("paper_ablation", rows)
