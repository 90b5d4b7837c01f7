"""`python -m benchmarks reproduce SET`: all runs of a command, one after the other."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from contextlib import closing

import torch

from ..options import BadOption
from . import plan
from .data import ImageSet, read
from .engine import Machine, Trainer
from .progress import Display, counted
from .ranks import Stopped, device_of, joined
from .runs import Run, trial
from .settings import Config


def describe(runs: list[Config], images: ImageSet, machine: Machine) -> str:
    first = runs[0]
    methods = ", ".join(dict.fromkeys(config.method for config in runs))
    return (
        f"{first.network} on {first.dataset} ({first.train_images} images of "
        f"{images.classes} classes, {first.test_images} to test on): {methods}; "
        f"{counted(len(runs))} of {first.epochs} epochs, batch {first.batch}, on {machine.device}"
        + (f", {machine.ranks.world} processes" if machine.ranks.world > 1 else "")
    )


def train(arguments: Namespace) -> None:
    device = device_of(arguments.device)
    torch.backends.cudnn.deterministic = True  # else a resumed run would not give the same bits
    with joined(device) as ranks:
        images = ranks.together(lambda: read(arguments.what, arguments.data))
        ranks.together(lambda: plan.check(arguments, images, ranks.world))
        runs = ranks.together(lambda: plan.configs(arguments, images))
        machine = Machine(device, arguments.compile, arguments.channels_last, ranks)
        images = machine.holding(images)
        if arguments.steps:
            if ranks.rank == 0:
                print(describe(runs, images, machine))
            with closing(Trainer(runs[0], images, machine)) as trainer:
                trial(arguments.steps, runs, trainer)
            return
        done = ranks.together(lambda: plan.checkpoints(arguments, runs, device))
        steps = -(-ranks.even(len(images.train.labels)) // arguments.batch)
        total = sum((config.epochs - done.get(config, 0)) * steps for config in runs)
        with Display(total, ranks.rank == 0) as display:
            display.say(describe(runs, images, machine))
            for config in runs:
                run = Run(arguments, config, images, machine)
                with closing(Trainer(config, images, machine)) as trainer:
                    run.begin(trainer, done.get(config))
                    run.train(trainer, done.get(config, 0), display)
                    run.end(trainer, display)


def main(arguments: Namespace) -> int:
    if arguments.what == "report":
        from . import report  # draws, so it needs matplotlib

        report.main(arguments.folder)
        return 0
    try:
        train(arguments)
        return 0
    except BadOption:
        if int(os.environ.get("RANK", "0")):
            return 2  # the first rank says it for all
        raise
    except Stopped as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return 1
