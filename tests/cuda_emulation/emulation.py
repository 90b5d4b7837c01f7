"""Builds and loads the emulated CUDA kernels. cuda_emulator.h documents the loaded module."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from mmix_fast import ops
from mmix_fast.autograd.kernels import Kernels
from mmix_fast.dispatch import Backend

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAMESPACE = "mmix_fast_emulated"
# -O1: without optimisation the kernels are so slow that the tests take longer; higher levels take
# longer to compile. Aliasing rules are not what is tested here.
FLAGS = [
    "-std=c++20",
    "-O1",
    "-g1",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-U_FORTIFY_SOURCE",  # its longjmp aborts when a fiber jumps to another stack
    "-Wno-unknown-pragmas",
    "-Wno-attributes",  # kernels must stay visible, so that dladdr finds their names
    "-DMMIX_EMULATED",
    f"-DMMIX_NAMESPACE={NAMESPACE}",
    "-DMMIX_DEVICE_KEY=CPU",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
]


def build_directory(name: str) -> Path:
    path = ROOT / "build" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def _units(directory: Path) -> list[str]:
    """Writes C++ files that include csrc/cuda/*.cu: cpp_extension would give .cu files to nvcc."""
    units = []
    for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
        unit = directory / f"{source.stem}_emulated.cpp"
        text = f'#include "cuda/{source.name}"\n'
        if not unit.exists() or unit.read_text() != text:
            unit.write_text(text)
        units.append(str(unit))
    return units


def _load(name: str, engine: str, *extra: str) -> Any:
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    directory = build_directory(name)
    with open(directory / "own_lock", "w") as lock:
        # Workers of pytest-xdist take turns, and the first one builds. torch's own lock is a file:
        # left behind by a killed process, it would block the next build for ever. The kernel of
        # the operating system drops this lock when its process ends.
        fcntl.flock(lock, fcntl.LOCK_EX)
        (directory / "lock").unlink(missing_ok=True)
        return _build(name, engine, directory, *extra)


def _build(name: str, engine: str, directory: Path, *extra: str) -> Any:
    from torch.utils import cpp_extension

    own = [str(HERE / f) for f in ("bind.cpp", "launch.cpp", "memory.cpp", engine)]
    return cpp_extension.load(
        name,
        [*own, *_units(directory)],
        extra_cflags=[*FLAGS, *extra],
        extra_ldflags=list(extra),
        extra_include_paths=[str(HERE / "shims"), str(ROOT / "csrc")],
        build_directory=str(directory),
    )


@functools.cache
def load() -> Any:
    """The emulator on fibers, with its ops and their fakes registered."""
    module = _load("mmix_emulated", "engine_fibers.cpp")
    ops.define(NAMESPACE)
    return module


def build_threads() -> Path:
    """The library of the emulator on OS threads; loads only where ThreadSanitizer is preloaded."""
    name = "mmix_emulated_threads"
    with contextlib.suppress(ImportError):  # it is built, but this process lacks ThreadSanitizer
        _load(name, "engine_threads.cpp", "-DMMIX_EMULATE_THREADS", "-fsanitize=thread")
    return build_directory(name) / f"{name}.so"


# A backend of CPU tensors: every test with the `backend` fixture runs the CUDA kernels on it.
BACKEND = Backend("cuda-emulated", Kernels(NAMESPACE), lambda: (), "cpu", draws=True)


def symbols() -> list[str]:
    """Demangled names of the functions in the emulated library, with every kernel instantiation."""
    library = next(build_directory("mmix_emulated").glob("*.so"))
    listed = subprocess.run(["nm", "-DC", str(library)], capture_output=True, text=True, check=True)
    fields = (line.split(maxsplit=2) for line in listed.stdout.splitlines())
    return [words[2] for words in fields if len(words) == 3]
