"""`make bench-check`: compares new ratios with those of a stored run, and names what got slower.

The stored run is the data file ``results/check.json``. Absolute times are never compared: machines
differ, and other processes disturb them. The ratio to a baseline measured in the same rounds stays
comparable. A problem got slower if its ratio is more than THRESHOLD below the stored one and the
quartile ranges of the rounds' ratios do not overlap, in two measurements out of two: on a shared
machine a single measurement gives false alarms.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from . import datafile
from .clock import Clock
from .problem import OURS, Maker, Problem
from .problems import cross_entropy, losses, mix
from .rows import rows
from .runner import Effort, run
from .tables import busy

STORED = datafile.path_of("check")
THRESHOLD = 0.25  # ratios of unchanged code vary by up to 22 % from run to run
EFFORT = Effort(15, 1.0)


def first_baseline_only(make: Maker) -> Problem:
    """Keeps the first baseline: one ratio for each problem, and nothing to compile.

    Only warm caches. With many inputs in turn, the allocator gives the baseline either reused or
    fresh pages, and its time then jumps between two values that differ five times.
    """
    problem = make()
    kept = dict(list(problem.implementations.items())[:2])
    goals = tuple(goal for goal in problem.goals if goal.baseline in kept)
    return replace(problem, implementations=kept, goals=goals, cold=False)


def measure() -> dict:
    """The shapes of --quick on the CPU; float32 where dtypes can be chosen."""
    every = [
        *mix.makers(None, (torch.float32,), "cpu", True),
        *cross_entropy.makers(None, (torch.float32,), "cpu", True),
        *losses.makers("cpu", True),
    ]
    makers = [partial(first_baseline_only, maker) for maker in every]
    clock = Clock()
    done = run("check", makers, clock, EFFORT)
    return datafile.content(done, clock, None, True)


def ratios(data: dict) -> dict[str, tuple[str, dict]]:
    """group -> (name of the baseline, its ratio with quartiles)"""
    return {
        row.ours["group"]: next(
            (name, record["extra_info"]) for name, record in row.records.items() if name != OURS
        )
        for row in rows(data["benchmarks"])
    }


def slower(stored: dict, now: dict) -> dict[str, str]:
    """group -> message, for each problem that got slower."""
    before, found = ratios(stored), {}
    for group, (baseline, new) in ratios(now).items():
        if group not in before:
            continue  # a new problem: nothing to compare with
        old = before[group][1]
        fell = new["ratio"] < (1 - THRESHOLD) * old["ratio"]
        if fell and new["ratio_q3"] < old["ratio_q1"]:
            found[group] = (
                f"{group}: {baseline} takes {new['ratio']:.3g} times as long as ours "
                f"[{new['ratio_q1']:.3g}, {new['ratio_q3']:.3g}], in the stored run "
                f"{old['ratio']:.3g} [{old['ratio_q1']:.3g}, {old['ratio_q3']:.3g}]"
            )
    return found


def compare() -> int:
    stored = datafile.read(STORED)
    now = measure()
    for key in ("device_name", "capability", "torch"):
        old, new = (d["machine_info"][key] for d in (stored, now))
        if old != new:
            print(f"stored run: {old}, this run: {new}; ratios may differ for that reason alone")
    for name, data in (("stored run", stored), ("this run", now)):
        if words := busy(data["machine_info"]):
            print(f"{name}: {words}")
    found = slower(stored, now)
    if found:
        again = slower(stored, measure())
        found = {group: again[group] for group in found if group in again}
    print("\n".join(["got slower:", *found.values()] if found else ["nothing got slower"]))
    return 1 if found else 0


def update() -> int:
    datafile.check_writable(STORED)
    datafile.write_json(STORED, measure())
    print(f"written: {STORED.name}")
    return 0


def main(updating: bool) -> int:
    return update() if updating else compare()
