"""Interleaved timing: rivals take turns, so that the machine's noise meets them alike."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import torch
from torch.profiler import ProfilerActivity, profile

RESULTS = Path(__file__).parent / "results"
Work = Callable[[], object]


def interleave(rivals: dict[str, Work], budget_s: float = 2.0) -> dict[str, list[float]]:
    """Seconds of each rival in each round; at least 7 rounds, then as many as the budget allows."""
    for work in rivals.values():
        for _ in range(3):
            work()
    times: dict[str, list[float]] = {name: [] for name in rivals}
    start = time.perf_counter()
    while len(times[next(iter(rivals))]) < 7 or time.perf_counter() - start < budget_s:
        # In a new order each round: who runs after whom decides what the cache and the heap hold.
        for name, work in random.sample(list(rivals.items()), len(rivals)):
            begin = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - begin)
    return times


def peak_bytes(work: Work) -> int:
    """The most memory the work's tensors hold at once, from the profiler's allocation events."""
    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        work()
    held = peak = 0
    for event in run.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def compare(
    title: str, rivals: dict[str, Work], floors: dict[str, float], budget_s: float = 2.0
) -> dict:
    """Times "fused" against the others; a floor is the least ratio rival/fused that must hold."""
    times = interleave(rivals, budget_s)
    row: dict = {"title": title, "us": {}, "ratio": {}, "spread": {}, "floor": floors}
    row["peak_bytes"] = {name: peak_bytes(work) for name, work in rivals.items()}
    for name, values in times.items():
        row["us"][name] = round(1e6 * median(values), 1)
        ratios = [other / own for other, own in zip(values, times["fused"], strict=True)]
        low, _, high = quantiles(ratios, n=4)
        row["ratio"][name] = round(median(values) / median(times["fused"]), 2)
        row["spread"][name] = [round(low, 2), round(high, 2)]
    print(f"{title}: fused {row['us']['fused']:.0f} us, {row['peak_bytes']['fused']} bytes")
    for name in rivals:
        if name == "fused":
            continue
        floor = floors.get(name)
        verdict = "" if floor is None else f"needs {floor}x: "
        if floor is not None:
            verdict += "pass" if row["ratio"][name] >= floor else "MISS"
        low, high = row["spread"][name]
        print(
            f"    {name:<14}{row['us'][name]:>10.0f} us {row['ratio'][name]:>7.2f}x"
            f" ({low}..{high}) {row['peak_bytes'][name]:>12} bytes  {verdict}"
        )
    return row


def save(name: str, rows: list[dict]) -> None:
    RESULTS.mkdir(exist_ok=True)
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    machine["capability"] = torch.backends.cpu.get_cpu_capability()
    text = json.dumps({"machine": machine, "rows": rows}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
