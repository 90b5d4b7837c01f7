"""Every kernel runs in every dtype that it is compiled for, and every barrier is needed."""

import re

import pytest
import torch

from tests.cuda_emulation import (
    binary_cross_entropy_checks,
    cross_entropy_checks,
    emulation,
    mixing_checks,
    sampling_checks,
    shard_checks,
)
from tests.support.cases import DTYPES

KERNELS = emulation.ROOT / "csrc/cuda/kernels"
# Each has run_all(emulator, dtype) -> bool.
CHECKS = (
    mixing_checks,
    cross_entropy_checks,
    binary_cross_entropy_checks,
    sampling_checks,
    shard_checks,
)


def declared():
    """Names of the __global__ functions in the sources."""
    text = "\n".join(p.read_text() for p in sorted(KERNELS.glob("*.cuh")))
    pattern = r"__global__ void(?:\s+__launch_bounds__\((?:[^()]|\([^()]*\))*\))?\s+(\w+)\("
    found = set(re.findall(pattern, text))
    assert len(found) == len(re.findall(r"__global__", text)), "a kernel this pattern does not see"
    return found


def test_every_kernel_runs_in_every_dtype():
    emulator = emulation.load()
    for dtype in DTYPES:
        for checks in CHECKS:
            assert checks.run_all(emulator, dtype)
    compiled = {
        s
        for s in emulation.symbols()  # shared variables in a kernel are symbols too
        if s.endswith(")") and any(re.search(rf"\b{n}(<|\()", s) for n in declared())
    }
    bases = {re.search(r"(\w+)(<|\()", s.split("mmix::", 1)[1]).group(1) for s in compiled}
    assert bases == declared()  # a kernel that csrc/cuda never launches is not instantiated
    assert compiled - emulator.kernels() == set()


def barriers():
    pattern = re.compile(r"__sync(threads|warp)|MMIX_(CLUSTER|GRID)_BARRIER\(\)")
    for path in sorted(KERNELS.glob("*.cuh")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.split("//")[0]
            if pattern.search(code) and "__device__" not in code and "#define" not in code:
                yield path.name, number


@pytest.mark.deep
@pytest.mark.parametrize("file, line", list(barriers()))
def test_without_a_barrier_something_goes_wrong(file, line):
    emulator = emulation.load()
    of_files = {
        "binary": binary_cross_entropy_checks,
        "cross": cross_entropy_checks,
        "sample": sampling_checks,
    }
    module = of_files.get(file.removesuffix(".cuh").split("_")[0], mixing_checks)
    emulator.disable_barrier(file, line)
    try:
        for seed in range(20):
            emulator.set_seed(seed)
            torch.manual_seed(seed)
            for dtype in (torch.float32, torch.float16):
                try:
                    if not module.run_all(emulator, dtype):
                        return
                except RuntimeError:  # out of bounds, a race between blocks, a divergent barrier
                    return
    finally:
        emulator.disable_barrier("", 0)
    pytest.fail(f"{file}:{line} is not needed, or no check can tell")
