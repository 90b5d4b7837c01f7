"""The processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .. import process_group
from ..options import BadOption
from .data import BadData

# A rank that is gone is found at once, by its closed connection; this is for one that hangs.
PATIENCE = timedelta(minutes=10)
T = TypeVar("T")


class Stopped(RuntimeError):
    """The run cannot go on. The message is one sentence."""


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    world: int = 1

    def add(self, values: Tensor) -> Tensor:
        """The sum over all ranks."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def same(self, values: list[Tensor]) -> None:
        """Sets the tensors to those of the first rank."""
        if self.world > 1:
            for value in values:
                dist.broadcast(value, 0)

    def even(self, count: int) -> int:
        """The most samples of so many that the ranks can share evenly."""
        return count - count % self.world

    def share(self, rows: Tensor) -> Tensor:
        """This rank's rows of a batch."""
        return rows[self.rank :: self.world]

    def together(self, action: Callable[[], T]) -> T:
        """Runs the action on each rank. What one refuses, all refuse: else the others would wait
        for it in their next collective."""
        done, said = None, ""
        try:
            done = action()
        except (BadOption, BadData) as error:
            said = str(error)
        every = [said]
        if self.world > 1:
            every = [""] * self.world
            dist.all_gather_object(every, said)
        for message in filter(None, every):
            raise BadOption(message)
        return done  # type: ignore[return-value]

    def first(self, action: Callable[[], None]) -> None:
        """Runs the action on the first rank alone; the others wait until it is done."""
        self.together(action if self.rank == 0 else lambda: None)


def device_of(name: str) -> torch.device:
    """The device of this process; under torchrun, `cuda` is one GPU for each."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:
        number, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if number >= found:
            raise BadOption(f"--device cuda must have a GPU for each process, found {found}")
        device = torch.device("cuda", number)
    return device


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The ranks that torchrun started, connected; a single one without torchrun.

    A rank that fails says so in one sentence and ends: torchrun then ends the others.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    process_group.enter("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    ranks = Ranks(dist.get_rank(), world)
    try:
        yield ranks
        process_group.leave()
    except (BadOption, Stopped):  # on all ranks at the same place
        process_group.leave()
        raise
    except Exception as error:
        line = " ".join(str(error).split())
        raise Stopped(f"rank {ranks.rank} of {world}: {type(error).__name__}: {line}") from error
