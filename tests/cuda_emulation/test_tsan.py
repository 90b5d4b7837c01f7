"""ThreadSanitizer on every kernel: each CUDA thread is an OS thread."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_emulation import emulation
from tests.cuda_emulation.emulation import HERE
from tests.cuda_emulation.test_coverage import CHECKS


def run(checks, file="", line=0):
    runtime = subprocess.run(
        ["g++", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("g++ has no ThreadSanitizer here")
    path = [str(emulation.ROOT), *filter(None, sys.path)]
    env = {
        **os.environ,
        "LD_PRELOAD": runtime,
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 exitcode=66",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path),
    }
    library = str(emulation.build_threads())
    # The real path: if `python` is a shell script, the shell would load ThreadSanitizer and crash.
    command = [os.path.realpath(sys.executable), str(HERE / "tsan_run.py")]
    done = subprocess.run(
        [*command, library, checks, file, str(line)], capture_output=True, text=True, env=env
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel's address randomisation is too wide for ThreadSanitizer")
    return done


@pytest.mark.deep
@pytest.mark.parametrize("checks", [c.__name__.rpartition(".")[2] for c in CHECKS])
def test_no_kernel_has_a_data_race(checks):
    done = run(checks)
    assert done.returncode == 0 and "came right" in done.stdout, done.stdout + done.stderr[-6000:]


@pytest.mark.deep
def test_a_missing_barrier_is_a_race():
    lines = (emulation.ROOT / "csrc/cuda/kernels/mix.cuh").read_text().splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if "__syncthreads();" in text)
    done = run("mixing_checks", "mix.cuh", line)
    assert done.returncode == 66 and "data race" in done.stderr
