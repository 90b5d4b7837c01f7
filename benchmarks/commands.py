"""The subcommands."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import (
    check,
    datafile,
    demo,
    paper,
    ranks,
    report,
    tables,
    training,
)
from .clock import clock_of
from .options import Options, checked
from .problem import Maker
from .problems import (
    binary_cross_entropy,
    cross_entropy,
    linear,
    losses,
    mix,
    scaling,
    sharded,
    step,
    timm_loop,
)
from .reproduce.arguments import HELP
from .runner import FULL, QUICK, Effort, run

LOSSES = losses.CASES + binary_cross_entropy.CASES + timm_loop.CASES
FLOAT, HALF = (torch.float32,), (torch.bfloat16,)


def dtypes_of(options: Options) -> tuple[torch.dtype, ...]:
    return options.dtypes or (FLOAT if options.quick else FLOAT + HALF)


# Commands that measure; each writes the data file of its name.
MEASURING: dict[str, Callable[[Options], list[Maker]]] = {
    "mix": lambda o: mix.makers(o.shapes, dtypes_of(o), o.device, o.quick),
    "cross_entropy": lambda o: cross_entropy.makers(o.shapes, dtypes_of(o), o.device, o.quick),
    "losses": lambda o: losses.makers(o.device, o.quick, LOSSES),
    "scaling": lambda o: scaling.makers(o.dtypes or FLOAT, o.device, o.quick),
    "step": lambda o: step.makers(o.device, o.quick),
    "linear": lambda o: linear.makers(o.shapes, dtypes_of(o), o.device, o.quick),
    "sharded": lambda o: sharded.makers(o.shapes, o.dtypes or FLOAT, o.quick),
}
# (whole, --quick) where they differ from those of the others. The goal of a training step is a few
# percent: it takes more rounds to resolve.
EFFORTS: dict[str, tuple[Effort, Effort]] = {
    "step": (step.EFFORT, QUICK),
    "linear": (linear.EFFORT, linear.EFFORT),
    "sharded": (sharded.EFFORT, sharded.QUICK_EFFORT),
}


def measure(name: str, options: Options) -> None:
    clock = clock_of(options.device)
    effort = EFFORTS.get(name, (FULL, QUICK))[options.quick]
    makers = MEASURING[name](options)
    if name == "sharded":
        done = ranks.run(makers, sharded.RANKS, clock, effort, options.backend)
    else:
        with options.chosen_backend():
            done = run(name, makers, clock, effort)
    data = datafile.content(done, clock, options.backend, options.quick)
    tables.show(data)
    target = options.target(name)
    if target:
        datafile.write_json(target, data)
        print(f"written: {target}")


def measure_all(arguments: Namespace) -> None:
    options = checked("all", arguments)
    for name in MEASURING:
        if target := options.target(name):
            datafile.check_writable(target)
    for name in MEASURING:
        measure(name, options)
    if options.whole and not options.json:
        report.main()


def measure_claims(arguments: Namespace) -> None:
    paper.main(arguments.part, arguments.full)
    report.main()


@dataclass(frozen=True)
class Command:
    help: str
    run: Callable[[Namespace], int | None]


def measuring_command(name: str) -> Callable[[Namespace], None]:
    return lambda arguments: measure(name, checked(name, arguments))


def reproduce(arguments: Namespace) -> int:
    from .reproduce import command  # here: it takes a moment, and no other command needs it

    return command.main(arguments)


def machine_code() -> None:
    from tests.machine_code import table  # here: no other command needs the tests

    table.main()


COMMANDS = {
    "mix": Command("mixing and CutMix", measuring_command("mix")),
    "cross_entropy": Command(
        "the mixed loss with its gradient", measuring_command("cross_entropy")
    ),
    "losses": Command(
        "the loss as used by timm, for segmentation and others", measuring_command("losses")
    ),
    "scaling": Command("time over B, D and C, from tiny to large", measuring_command("scaling")),
    "step": Command("a whole training step", measuring_command("step")),
    "linear": Command(
        "a linear head with its loss in chunks: time and memory", measuring_command("linear")
    ),
    "sharded": Command(
        "classes sharded over processes: time, bytes and collectives", measuring_command("sharded")
    ),
    "all": Command("these seven, then the report", measure_all),
    "report": Command("tables and pictures from the data files", lambda _: report.main()),
    "check": Command("what got slower since the stored run", lambda a: check.main(a.update)),
    "sass": Command("machine code of the GPU kernels (no GPU needed)", lambda _: machine_code()),
    "paper": Command("the paper's claims, then the report", measure_claims),
    "reproduce": Command(HELP, reproduce),
    "training": Command("a small CNN on MNIST digits, 3 seeds", lambda _: training.main()),
    "demo": Command("backends, speed, training and two pictures", lambda _: demo.main()),
}
