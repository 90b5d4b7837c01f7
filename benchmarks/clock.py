"""A device's timer and peak memory, its cache size and the speed of its memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from pytest_benchmark.timers import compute_timer_precision, default_timer
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from .problem import Op

CACHE = 32 << 20  # bytes, if the system does not say: a common size of an L3 cache
OVER_CACHE = 4  # buffers used in turn are no longer cached if they exceed the last cache so often
CEILING_ROUNDS = 9


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
        self.precision = compute_timer_precision(default_timer)

    def name(self) -> str:
        return f"CPU, {torch.get_num_threads()} threads"

    def cache_bytes(self) -> int:
        """The size of the last-level cache."""
        files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")  # such as 1024K
        sizes = [int(f.read_text().strip().removesuffix("K")) << 10 for f in files]
        return max(sizes, default=CACHE)

    def seconds(self, op: Op, inputs: Sequence[Tensor]) -> float:
        """The time of one call on each input, together."""
        begin = default_timer()
        for x in inputs:
            op(x)
        return default_timer() - begin

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

    def peak_bytes(self, work: Callable[[], object]) -> int:
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before


def clock_of(device: str) -> Clock:
    return (CudaClock if torch.device(device).type == "cuda" else Clock)(device)
