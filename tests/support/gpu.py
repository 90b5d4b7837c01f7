"""The backends of a GPU, and what happens to their tests where one cannot be used."""

import os

import pytest

import mmix_fast
from benchmarks.gpu.machine import was_built
from mmix_fast import dispatch

# 1: a backend that was built, but cannot be used, fails its tests instead of skipping them, so that
# a machine with a GPU cannot pass without running any. `make gpu` sets it.
REQUIRE = "MMIX_FAST_REQUIRE_GPU"
DEVICE = "cuda"
BACKENDS = [b.name for b in dispatch.BACKENDS if b.device == DEVICE]


def need(backend):
    """Skips the test, or fails it, if this backend cannot be used."""
    status = mmix_fast.backends()[backend]
    if status.usable:
        return
    why = "; ".join(status.reasons)
    if os.environ.get(REQUIRE) == "1" and was_built(backend):
        pytest.fail(f"{backend} was built, but cannot be used: {why}", pytrace=False)
    pytest.skip(why)
