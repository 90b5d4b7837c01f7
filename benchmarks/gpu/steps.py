"""The steps of `make gpu`. Each is a command, so that a crash ends that step alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

from . import machine, measure

TOTAL_S = 590.0  # of all steps together
# Of pytest: the time goes into compiling some 1,500 Triton kernels. Each holds a CUDA context.
WORKERS = min(12, os.cpu_count() or 1)
USABLE = {"MMIX_FAST_REQUIRE_GPU": "1"}  # tests/support/gpu.py
SANITIZER = "compute-sanitizer"
# Small inputs, and of one dtype: checking each access makes them a hundred times slower.
SANITIZED, ONE_DTYPE = "tests/gpu/test_every_op.py", "(float32 or batch)"
TESTS = ("tests/gpu", "tests/ops")  # the latter need hypothesis


def nothing() -> str:
    return ""


@dataclass(frozen=True)
class Step:
    name: str
    command: tuple[str, ...]
    limit_s: float
    env: dict[str, str] = field(default_factory=dict)
    # Why the step is not needed or not possible, "" if it is to run. Asked when its turn comes.
    skipped: Callable[[], str] = nothing
    dry: Callable[[], None] | None = None  # what a dry run does in place of the command


@dataclass(frozen=True)
class Result:
    name: str
    said: str  # "passed", "dry run", "skipped: ...", "failed: ..."
    seconds: float

    @property
    def failed(self) -> bool:
        return self.said.startswith("failed")


def already_built() -> str:
    """The extension of this very commit has code for this GPU."""
    facts, here = machine.built(), f"sm_{machine.architecture().replace('.', '')}"
    same = facts.get("commit") == machine.commit() != ""
    if same and here in facts.get("architectures", ()):
        return f"built from this commit, with code for {here}"
    return ""


def no_pytest() -> str:
    return "" if find_spec("pytest") else "no package pytest"


def no_sanitizer() -> str:
    return no_pytest() or ("" if shutil.which(SANITIZER) else f"no {SANITIZER} on PATH")


def pytest(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--tb=short", "-rs", *words)


def testing() -> Step:
    parallel = ("-n", str(WORKERS), "--dist", "loadgroup") if find_spec("xdist") else ()
    where = TESTS if find_spec("hypothesis") else TESTS[:1]
    return Step("tests", pytest(*parallel, "--durations=10", *where), 240, USABLE, no_pytest)


def sanitizer(tool: str, which: str, *options: str, **env: str) -> Step:
    program = (SANITIZER, "--tool", tool, "--error-exitcode", "9", *options)
    command = (*program, *pytest("-x", SANITIZED, "-k", which))
    return Step(tool, command, 75, USABLE | env, no_sanitizer)


def memcheck() -> Step:
    """Without the caching allocator, an access behind a tensor leaves its allocation. PyTorch makes
    calls of the CUDA API that may fail: these are no errors."""
    options = ("--report-api-errors", "no")
    return sanitizer("memcheck", ONE_DTYPE, *options, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def racecheck() -> Step:
    """Of our own kernels: Triton's compiler sets the barriers of its."""
    return sanitizer("racecheck", f"cuda and {ONE_DTYPE}")


def steps(folder: Path) -> list[Step]:
    build = {
        "MMIX_FAST_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": machine.architecture(),
        "MAX_JOBS": str(os.cpu_count()),
    }
    build_ext = (sys.executable, "setup.py", "build_ext", "--inplace")
    return [
        Step("build", build_ext, 240, build, already_built),
        testing(),
        memcheck(),
        racecheck(),
        *(measuring(who, folder) for who in measure.PARTS),
    ]


def not_built(who: str) -> str:
    if who == measure.BASELINES or machine.was_built(who):
        return ""
    return "no package triton" if who == "triton" else "the extension was built without CUDA"


def measuring(who: str, folder: Path) -> Step:
    command = (sys.executable, "-m", "benchmarks.gpu.measure", who, str(folder))
    limit = 120 if who in measure.BACKENDS else 150
    dry = partial(measure.main, who, folder, dry=True)
    return Step(f"measure {who}", command, limit, skipped=partial(not_built, who), dry=dry)


def run(step: Step, dry: bool, seconds: float) -> Result:
    """Runs a step for at most so many seconds; what it prints goes to the terminal."""
    begin = perf_counter()
    shown = " ".join([*(f"{k}={v}" for k, v in step.env.items()), *step.command])
    print(f"\n== {step.name}: {shown}", flush=True)
    if dry:
        if step.dry:
            step.dry()
        return Result(step.name, "dry run", perf_counter() - begin)
    reason = step.skipped()
    if reason:
        print(f"skipped: {reason}", flush=True)
        return Result(step.name, f"skipped: {reason}", 0.0)
    limit = min(step.limit_s, seconds)
    # A group of its own, so that all that it started ends with it.
    process = subprocess.Popen(
        step.command, cwd=machine.ROOT, env={**os.environ, **step.env}, start_new_session=True
    )
    try:
        code = process.wait(max(1.0, limit))
        said = f"failed: exit code {code}" if code else "passed"
    except subprocess.TimeoutExpired:
        said = f"failed: took longer than {limit:.0f} s"
    finally:  # also where this process is interrupted
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Result(step.name, said, perf_counter() - begin)
