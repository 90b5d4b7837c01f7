"""A problem: one computation on given inputs, and the implementations of it to compare."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial

import torch
from torch import Tensor

OURS = "fused"
THREADS = 2  # for CPU measurements that set no number of their own; recorded in the data files
Op = Callable[[Tensor], object]


@dataclass(frozen=True)
class Goal:
    """Ours may take at most ``share`` times the baseline's time, plus ``plus_s`` seconds."""

    baseline: str
    share: float
    plus_s: float = 0.0

    def met(self, ours: float, baseline: float) -> bool:
        return ours <= self.share * baseline + self.plus_s

    def __str__(self) -> str:
        if self.plus_s:
            return f"{self.share:g}x its time + {1e6 * self.plus_s:g} us"
        return f"{1 / self.share:.3g}x"


@dataclass(frozen=True)
class Implementation:
    """One way to compute a problem: ours, a baseline, or a plain pass over memory.

    ``expected`` is the result it must return, within the tolerances (0 and 0: bit for bit). It is
    None for a plain pass, which computes something else and is only compared by its time.
    """

    op: Op
    expected: Tensor | tuple[Tensor, ...] | None = None
    rtol: float = 0.0
    atol: float = 0.0
    compiled: bool = False  # its first call compiles


@dataclass(frozen=True)
class Problem:
    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    fresh: Callable[[], Tensor]  # makes a new input, always with the same values
    implementations: dict[str, Implementation]  # OURS first
    moved: int = 0  # bytes that any implementation must read and write; 0: not reported
    goals: tuple[Goal, ...] = ()
    consumes: bool = False  # every call needs a new input, which is made outside the timing
    sweep: str = ""  # the size that varies over a series of problems: B, C or D
    cold: bool = True  # also measure with inputs that are not in a cache
    threads: int | None = None  # None: leave the process's number
    # The same implementations at a small shape, which are verified in place of these.
    small: Problem | None = None
    slow: bool = False  # a call is a round of its own, and the one that measures memory the warm-up
    # Bytes of the inputs and of their gradients, of which the peak memory, inputs included, is
    # reported as a multiple; 0: not reported. Ours may need memory_goal times as much; 0: no goal.
    held: int = 0
    memory_goal: float = 0.0
    notes: dict[str, dict] = field(default_factory=dict)  # of an implementation, for the data file

    def memory_share(self, peak_bytes: int) -> float:
        """Half of ``held`` are the inputs, which are there before the call."""
        return (self.held / 2 + peak_bytes) / self.held

    @property
    def title(self) -> str:
        size = "x".join(map(str, self.shape))
        title = f"{self.op} {str(self.dtype).removeprefix('torch.')} {size}"
        if self.threads is None:
            return title
        return f"{title} {self.threads} thread{'s' if self.threads > 1 else ''}"


@cache
def load_compiler() -> None:
    """Imports the compiler and turns its disk cache off, so that compile times include neither."""
    torch.compiler.config.force_disable_caches = True
    warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")
    torch.compile(torch.neg)(torch.ones(1))


def compiled(function: Callable, dynamic: bool | None = None) -> Callable:
    """Compiles afresh: without the reset, a second shape would compile as a dynamic one."""
    load_compiler()
    torch._dynamo.reset()
    return torch.compile(function, dynamic=dynamic)


Maker = Callable[[], Problem]


def makers_for(
    shapes: Sequence[tuple[int, ...]] | None,
    default: Sequence[tuple[int, ...]],
    dtypes: Sequence[torch.dtype],
    device: str,
    kinds: Sequence[Callable[..., Problem]],
    small: Sequence[Callable[..., Problem]],
) -> list[Maker]:
    """Every kind at each shape and dtype, and the small calls unless shapes were given."""
    found: list[Maker] = []
    for dtype in dtypes:
        found += [partial(k, shape, dtype, device) for shape in shapes or default for k in kinds]
        if not shapes:
            found += [partial(k, dtype, device) for k in small]
    return found


def with_threads(make: Maker, count: int) -> Problem:
    return replace(make(), threads=count)


def by_threads(makers: Sequence[Maker], device: str) -> list[Maker]:
    """Each on one thread, as in a data loader's worker or a small container, and on THREADS if the
    machine has as many cores. On a GPU the number does not matter: the makers as they are."""
    if torch.device(device).type != "cpu":
        return list(makers)
    counts = [count for count in (1, THREADS) if count <= (os.cpu_count() or 1)]
    return [partial(with_threads, make, count) for make in makers for count in counts]
