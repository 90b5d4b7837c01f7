"""How a device's time and memory are read, and what its caches and its memory can do."""

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

CACHE = 32 << 20  # bytes, where the system does not tell: a common size of an L3
OVER_CACHE = 4  # times the last cache: what is read in turn over so much is not found there again
CEILING_ROUNDS = 9


def cpu_seconds_of_others() -> float | None:
    """CPU seconds that other processes have used since the machine started (Linux tells)."""
    try:
        ticks = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, ticks)  # not idle, not waiting
    used = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return used - sum(os.times()[:4])


class Clock:
    """Of the CPU; subclasses are of other devices."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.precision = compute_timer_precision(default_timer)

    def name(self) -> str:
        return f"CPU, {torch.get_num_threads()} threads"

    def cache_bytes(self) -> int:
        """Of the last-level cache."""
        files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")  # "1024K"
        sizes = [int(f.read_text().strip().removesuffix("K")) << 10 for f in files]
        return max(sizes, default=CACHE)

    def seconds(self, op: Op, inputs: Sequence[Tensor]) -> float:
        """Of the calls on all inputs together."""
        begin = default_timer()
        for x in inputs:
            op(x)
        return default_timer() - begin

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """The most memory the work's tensors hold at once, from the profiler's events."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
            work()
        held = peak = 0
        for event in run.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        return peak

    def copy_rate(self) -> float:
        """GB/s of a copy between two buffers that no cache holds: the ceiling of every pass."""
        source = torch.ones(OVER_CACHE * self.cache_bytes(), dtype=torch.uint8, device=self.device)
        into = torch.ones_like(source)  # written, so that its pages are there
        times = [self.seconds(into.copy_, [source]) for _ in range(CEILING_ROUNDS)]
        return 2 * source.nbytes / median(times) / 1e9


class CudaClock(Clock):
    """Events on the stream: the host's work is seen only where the GPU waits for it."""

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
