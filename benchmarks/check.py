"""`make bench-check`: what got slower against the committed baseline, by the ratio to a rival.

Never by absolute time: the rival is measured in the same rounds, so that a slower machine or a busy
neighbour meets both. A problem got slower where its ratio lies more than LEAST below the baseline's
and the quartile ranges of the rounds' ratios do not overlap, and this in two measurements: on a
shared machine one alone finds something that the next does not.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from . import cross_entropy, datafile, losses, mix
from .clock import Clock
from .problem import Maker, Problem
from .rows import rows
from .runner import Effort, run
from .tables import busy

BASELINE = datafile.path_of("baseline")
LEAST = 0.25  # from run to run of the same code, ratios here moved by up to 22 %
EFFORT = Effort(15, 1.0)


def first_rival_only(make: Maker) -> Problem:
    """One ratio a problem, and no time goes into compiling.

    Warm only: with inputs in turn the heap gives the rival old pages or new ones, as it happens,
    which makes its time one of two, five times apart.
    """
    problem = make()
    kept = dict(list(problem.rivals.items())[:2])
    goals = tuple(goal for goal in problem.goals if goal.rival in kept)
    return replace(problem, rivals=kept, goals=goals, cold=False)


def measure() -> dict:
    """The shapes of --quick, in float32 where there is a choice, on the CPU."""
    every = [
        *mix.makers(None, (torch.float32,), "cpu", True),
        *cross_entropy.makers(None, (torch.float32,), "cpu", True),
        *losses.makers("cpu", True),
    ]
    makers = [partial(first_rival_only, maker) for maker in every]
    clock = Clock()
    done = run("check", makers, clock, EFFORT)
    return datafile.content(done, clock, None, True)


def ratios(data: dict) -> dict[str, tuple[str, dict]]:
    """group -> (its rival, the ratio with its quartiles)"""
    found = {}
    for row in rows(data["benchmarks"]):
        rival = next(record for name, record in row.rivals.items() if record is not row.ours)
        found[row.ours["group"]] = (rival["params"]["rival"], rival["extra_info"])
    return found


def slower(baseline: dict, now: dict) -> dict[str, str]:
    """group -> what to say, of each that got slower."""
    before, found = ratios(baseline), {}
    for group, (rival, new) in ratios(now).items():
        if group not in before:
            continue  # a new problem has nothing to be slower than
        old = before[group][1]
        fell = new["ratio"] < (1 - LEAST) * old["ratio"]
        if fell and new["ratio_q3"] < old["ratio_q1"]:
            found[group] = (
                f"{group}: {rival} takes {new['ratio']:.3g} times as long as ours "
                f"[{new['ratio_q1']:.3g}, {new['ratio_q3']:.3g}], in the baseline "
                f"{old['ratio']:.3g} [{old['ratio_q1']:.3g}, {old['ratio_q3']:.3g}]"
            )
    return found


def main() -> int:
    baseline = datafile.read(BASELINE)
    now = measure()
    for key in ("device_name", "capability", "torch"):
        old, new = (d["machine_info"][key] for d in (baseline, now))
        if old != new:
            print(f"the baseline is of {old}, this is {new}: ratios may differ for that alone")
    for name, data in (("baseline", baseline), ("now", now)):
        if words := busy(data["machine_info"]):
            print(f"{name}: {words}")
    found = slower(baseline, now)
    if found:
        again = slower(baseline, measure())
        found = {group: again[group] for group in found if group in again}
    print("\n".join(["got slower:", *found.values()] if found else ["nothing got slower"]))
    return 1 if found else 0


def write_baseline() -> None:
    datafile.judge_target(BASELINE)
    datafile.write_json(BASELINE, measure())
    print(f"written: {BASELINE.name}")
