"""One thing to measure: who does it, on what, which bytes it must move and what is asked of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor

OURS = "fused"
THREADS = 2  # of every measurement on the CPU that asks for no other count; data files say so
Op = Callable[[Tensor], object]


@dataclass(frozen=True)
class Goal:
    """Ours may take ``share`` of the baseline's time, and ``plus_s`` seconds more."""

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
    fresh: Callable[[], Tensor]  # an input of its own, always of the same values
    implementations: dict[str, Implementation]  # OURS first
    moved: int = 0  # bytes that any implementation must read and write; 0: not of interest
    goals: tuple[Goal, ...] = ()
    consumes: bool = False  # a call uses its input up, so each gets one, made outside the timing
    sweep: str = ""  # the size that a series of problems varies: B, C or D
    cold: bool = True  # whether it is also measured with inputs that no cache holds
    threads: int | None = None  # None: those that the process has

    @property
    def title(self) -> str:
        size = "x".join(map(str, self.shape))
        title = f"{self.op} {str(self.dtype).removeprefix('torch.')} {size}"
        if self.threads is None:
            return title
        return f"{title} {self.threads} thread{'s' if self.threads > 1 else ''}"


@cache
def load_compiler() -> None:
    """So that no compile time holds its import, nor a result that it keeps on disk."""
    torch.compiler.config.force_disable_caches = True
    warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")  # which is meant
    torch.compile(torch.neg)(torch.ones(1))


def compiled(function: Callable, dynamic: bool | None = None) -> Callable:
    """Forgets what was compiled before: each problem compiles for its own shape."""
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
    """Every kind at each shape and dtype; where no shapes were asked for, the small calls too."""
    found: list[Maker] = []
    for dtype in dtypes:
        found += [partial(k, shape, dtype, device) for shape in shapes or default for k in kinds]
        if not shapes:
            found += [partial(k, dtype, device) for k in small]
    return found


def with_threads(make: Maker, count: int) -> Problem:
    return replace(make(), threads=count)


def by_threads(makers: Sequence[Maker], device: str) -> list[Maker]:
    """Each by one thread, as a data loader's worker or a container has it, and by THREADS where
    there are so many cores; what a GPU takes does not depend on them."""
    if torch.device(device).type != "cpu":
        return list(makers)
    counts = [count for count in (1, THREADS) if count <= (os.cpu_count() or 1)]
    return [partial(with_threads, make, count) for make in makers for count in counts]
