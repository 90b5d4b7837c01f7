"""Builds and loads the emulated CUDA kernels; cuda_emulator.h says what can be done with them."""

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
# Kernels run slowly enough without the optimiser that compiling with it pays; -O1 keeps the build
# short. Signed overflow and aliasing are not what is tested here.
FLAGS = [
    "-std=c++20",
    "-O1",
    "-g1",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-U_FORTIFY_SOURCE",  # its longjmp refuses to leave a fiber's stack
    "-Wno-unknown-pragmas",
    "-Wno-attributes",  # of visibility: kernels need names that dladdr finds
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
    """csrc/cuda/*.cu as C++ files: cpp_extension would hand a .cu file to nvcc."""
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
        # pytest-xdist's workers take turns: the first builds. Unlike torch's lock, a file that the
        # next build would wait for, this one goes with its process, however that ends.
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
    """The emulator on fibers, its ops registered."""
    module = _load("mmix_emulated", "engine_fibers.cpp")
    ops.define(NAMESPACE)
    return module


def build_threads() -> Path:
    """The emulator on OS threads, for a process with ThreadSanitizer preloaded."""
    name = "mmix_emulated_threads"
    with contextlib.suppress(ImportError):  # without ThreadSanitizer it is built but cannot load
        _load(name, "engine_threads.cpp", "-DMMIX_EMULATE_THREADS", "-fsanitize=thread")
    return build_directory(name) / f"{name}.so"


# The kernels as a backend on CPU tensors: every test of the `backend` fixture runs them.
BACKEND = Backend("cuda-emulated", Kernels(NAMESPACE), lambda: (), "cpu")


def symbols() -> list[str]:
    """The demangled functions of the emulated library: every kernel instantiation is among them."""
    library = next(build_directory("mmix_emulated").glob("*.so"))
    listed = subprocess.run(["nm", "-DC", str(library)], capture_output=True, text=True, check=True)
    fields = (line.split(maxsplit=2) for line in listed.stdout.splitlines())
    return [words[2] for words in fields if len(words) == 3]
