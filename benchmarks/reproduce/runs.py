"""A run from its start, or its checkpoint, to its result; and a trial of a few steps."""

from __future__ import annotations

import time
from argparse import Namespace

import torch

from . import robustness
from .data import ImageSet
from .engine import TEST_BATCH, Machine, Trainer
from .folder import RunFolder
from .progress import Display, counted, duration
from .settings import Config


def wait(device: torch.device) -> float:
    """The time, when the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def trial(steps: int, runs: list[Config], trainer: Trainer) -> None:
    """Trains some steps of the first run, tests on one batch, and says what all would take."""
    device, test_images = trainer.machine.device, len(trainer.images.test.labels)
    settle = min(10, steps // 2)  # the first steps are slower
    with Display(steps, trainer.ranks.rank == 0, estimates=False) as display:
        start, done, epoch = wait(device), 0, 0
        while done < steps:
            for sums in trainer.epoch(epoch):
                done += 1
                display.step(sums, "trial")
                if done == settle:
                    start = wait(device)
                if done == steps:
                    break
            epoch += 1
        step = (wait(device) - start) / (done - settle)
        loss, accuracy = trainer.means(sums, epoch - 1)
        start = wait(device)
        trainer.test(batches=1)
        test = (wait(device) - start) * test_images / min(TEST_BATCH, test_images)
        epochs = sum(config.epochs for config in runs)
        display.say(
            f"{done} steps, {step:.3g} s each; loss {loss:.4f}, accuracy {accuracy:.1f} %\n"
            f"about {duration(epochs * (trainer.steps * step + test))} for all: "
            f"{counted(len(runs))}, {epochs} epochs of {trainer.steps} steps and a test"
        )


class Run:
    """One run, from its checkpoint or its start to its result."""

    def __init__(
        self, arguments: Namespace, config: Config, images: ImageSet, machine: Machine
    ) -> None:
        self.config, self.images, self.machine = config, images, machine
        self.robustness = arguments.robustness
        self.folder = RunFolder(arguments.out / config.name)

    def begin(self, trainer: Trainer, done: int | None) -> None:
        """`done`: epochs of the checkpoint, None if there is none."""
        ranks = self.machine.ranks
        if done is None:
            ranks.first(lambda: self.folder.create(self.config, trainer.state()))
        else:
            trainer.load(self.folder.read(self.config, self.machine.device))
            ranks.first(lambda: self.folder.cut_log(done))

    def train(self, trainer: Trainer, done: int, display: Display) -> None:
        for epoch in range(done, self.config.epochs):
            start = time.perf_counter()
            config = self.config
            short = f"{config.method}-seed{config.seed} {epoch + 1}/{config.epochs}"
            for sums in trainer.epoch(epoch):
                display.step(sums, short)
            loss, accuracy = trainer.means(sums, epoch)
            row = {
                "epoch": epoch + 1,
                "lr": self.config.rate(epoch),
                "train_loss": loss,
                "train_accuracy": accuracy,
                **trainer.test(),
                "seconds": round(time.perf_counter() - start, 3),
            }
            self.machine.ranks.first(lambda row=row, epoch=epoch: self._keep(row, epoch, trainer))
            display.epoch(row, f"{config.name}, epoch {epoch + 1} of {config.epochs}")

    def _keep(self, row: dict, epoch: int, trainer: Trainer) -> None:
        self.folder.append(row)
        self.folder.save(self.config, epoch + 1, trainer.state())

    def end(self, trainer: Trainer, display: Display) -> None:
        found = None
        if self.robustness:  # on every rank: none may wait so long for another
            display.say(f"{self.config.name}: deformations and attacks")
            found = robustness.evaluate(
                trainer.network,
                self.images.test,
                self.images.mean,
                self.images.std,
                self.machine.device,
                self.config.batch,
                self.config.seed,
            )
        row = self.folder.last()
        self.machine.ranks.first(lambda: self.folder.finish(self.config, row, found))
        display.say(
            f"{self.config.name}: test error {row['test_error']:.2f} %, test NLL "
            f"{row['test_nll']:.4f}; written: {self.folder.path}"
        )
