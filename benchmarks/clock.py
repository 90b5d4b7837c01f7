"""A device's timer and peak memory, its cache size and the speed of its memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from .problem import Op

CACHE = 32 << 20  # bytes, if the system does not say: a common size of an L3 cache
OVER_CACHE = 4  # buffers used in turn are no longer cached if they exceed the last cache so often
CEILING_ROUNDS = 9
GPU_COPY = 1 << 30  # bytes: of a smaller buffer, the next copy finds a part in the cache
# A graph holds so many calls that the gap between two graphs, a few us, does not count: GRAPH_CALLS
# or, if they work through more than GRAPH_BYTES of inputs, fewer.
GRAPH_CALLS, GRAPH_BYTES = 64, 4 << 30


def cpu_seconds_of_others() -> float | None:
    """CPU seconds used by other processes since boot; None if the system does not say."""
    try:
        ticks = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, ticks)  # without idle and iowait
    used = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return used - sum(os.times()[:4])


class Clock:
    """Measures on the CPU; a subclass measures on another device."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    @cached_property
    def precision(self) -> float:
        from pytest_benchmark.timers import compute_timer_precision  # here: GPU images may lack it

        return compute_timer_precision(perf_counter)

    def name(self) -> str:
        return f"CPU, {torch.get_num_threads()} threads"

    def cache_bytes(self) -> int:
        """The size of the last-level cache."""
        files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")  # such as 1024K
        sizes = [int(f.read_text().strip().removesuffix("K")) << 10 for f in files]
        return max(sizes, default=CACHE)

    def seconds(self, op: Op, inputs: Sequence[Tensor]) -> float:
        """The time of one call on each input, together."""
        begin = perf_counter()
        for x in inputs:
            op(x)
        return perf_counter() - begin

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """The most memory that tensors made by ``work`` hold at once, from the profiler."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
            work()
        held = peak = 0
        for event in run.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        return peak

    def copy_rate(self) -> float:
        """GB/s of a copy between two buffers larger than the cache: the limit of any pass."""
        source = torch.ones(OVER_CACHE * self.cache_bytes(), dtype=torch.uint8, device=self.device)
        into = torch.ones_like(source)  # writing to it maps its pages before the timing
        times = [self.seconds(into.copy_, [source]) for _ in range(CEILING_ROUNDS)]
        return 2 * source.nbytes / median(times) / 1e9


class CudaClock(Clock):
    """Measures with CUDA events: host time counts only where the GPU waits for the host."""

    def name(self) -> str:
        return torch.cuda.get_device_name(self.device)

    def cache_bytes(self) -> int:
        return torch.cuda.get_device_properties(self.device).L2_cache_size

    def seconds(self, op: Op, inputs: Sequence[Tensor]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
        begin.record()
        for x in inputs:
            op(x)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def graph_seconds(
        self, op: Op, inputs: Sequence[Tensor], rounds: int, least_s: float
    ) -> list[float]:
        """Seconds of a call, by round, without the host: one CUDA graph calls op on inputs in turn.

        A round replays the graph until ``least_s`` have passed. Where the inputs exceed the cache,
        it is cold: the results of as many calls are kept, so that they are not written to one
        buffer, which the cache would hold.
        """
        side = torch.cuda.Stream(self.device)
        with torch.cuda.stream(side):  # a first call may allocate and compile; a capture must not
            for x in inputs[:2]:
                op(x)
        torch.cuda.synchronize(self.device)
        many = min(GRAPH_CALLS, GRAPH_BYTES // max(1, inputs[0].nbytes))
        calls = max(len(inputs), many)
        graph, kept = torch.cuda.CUDAGraph(), deque(maxlen=len(inputs))
        with torch.cuda.graph(graph):
            for x in islice(cycle(inputs), calls):
                kept.append(op(x))
        replay = torch.cuda.CUDAGraph.replay
        self.seconds(replay, [graph])  # the first replay also uploads the graph
        count = max(1, round(least_s / self.seconds(replay, [graph])))
        return [self.seconds(replay, [graph] * count) / (count * calls) for _ in range(rounds)]

    def copy_rate(self) -> float:
        size = max(GPU_COPY, OVER_CACHE * self.cache_bytes())
        source = torch.ones(size, dtype=torch.uint8, device=self.device)
        into = torch.ones_like(source)
        # Not in a graph: there an H100 copies 2,440 GB/s, and by a plain call 2,950.
        times = [self.seconds(into.copy_, [source]) for _ in range(CEILING_ROUNDS)]
        return 2 * size / median(times) / 1e9

    def peak_bytes(self, work: Callable[[], object]) -> int:
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before


class StubClock(Clock):
    """Stands for a GPU's clock on a machine without one (`make gpu DRY=1`): every op runs once, on
    the CPU, and every call takes the same time."""

    CALL_S, COPY_GB_PER_S = 1e-6, 1000.0

    def name(self) -> str:
        return "stub device"

    def cache_bytes(self) -> int:
        return 0

    def seconds(self, op: Op, inputs: Sequence[Tensor]) -> float:
        super().seconds(op, inputs[:1])
        return self.CALL_S * len(inputs)

    def graph_seconds(
        self, op: Op, inputs: Sequence[Tensor], rounds: int, least_s: float
    ) -> list[float]:
        return [self.seconds(op, inputs[:1])] * rounds

    def copy_rate(self) -> float:
        return self.COPY_GB_PER_S


def clock_of(device: str) -> Clock:
    return (CudaClock if torch.device(device).type == "cuda" else Clock)(device)
