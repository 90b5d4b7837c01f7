"""Builds mmix_fast._C, the stable-ABI extension: one cp310-abi3 binary for all torch >= 2.10.

Everything that is not the extension is in pyproject.toml.
"""

import os
import shlex
import shutil
import subprocess
import sysconfig
from glob import glob
from pathlib import Path

from setuptools import setup

try:
    from torch.utils import cpp_extension
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    raise SystemExit(
        f"mmix_fast is built against PyTorch, which this Python cannot import ({error}). "
        "Run `pip install torch` first, then `pip install -e . --no-build-isolation`."
    ) from error

ROOT = Path(__file__).resolve().parent
# ninja is looked for on PATH, where an environment that was not activated does not have it.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # 2.10, the oldest torch that can load it
CXX_FLAGS = [
    "-O3",
    "-std=c++20",
    "-fvisibility=hidden",
    # The results are defined bit for bit: no fused multiply-add, and of the fast-math family only
    # the two flags that cannot change a value.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    TARGET,
]
NVCC_FLAGS = [
    "-O3",
    "-std=c++20",
    "-Xcompiler",
    "-fvisibility=hidden",
    TARGET,
]


ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")


def find_toolkit() -> Path | None:
    """The CUDA toolkit: a folder with nvcc and its headers (nvcc on PATH may be a wrapper)."""
    wish = os.environ.get("MMIX_FAST_CUDA", "auto")
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"MMIX_FAST_CUDA must be 0, 1 or auto, got {wish!r}.")
    if wish == "0":
        return None
    nvcc = shutil.which("nvcc")
    places = [
        os.environ.get("CUDA_HOME"),
        os.environ.get("CUDA_PATH"),
        cpp_extension.CUDA_HOME,
        nvcc and Path(nvcc).resolve().parents[1],
        *sorted(glob("/usr/local/cuda*")),
    ]
    for home in (Path(place) for place in places if place):
        if (home / "include/cuda_runtime.h").exists() and (home / "bin/nvcc").exists():
            return home
    if wish == "1":
        raise SystemExit(
            "MMIX_FAST_CUDA=1 asks for the CUDA kernels, but no CUDA toolkit was found: install "
            "one (nvcc and its headers) and set CUDA_HOME to it, or build with MMIX_FAST_CUDA=0."
        )
    return None


def set_architectures(home: Path) -> None:
    """The default: all that this toolkit compiles for, and PTX of the last for what comes later."""

    def ask(option: str) -> str:
        command = [home / "bin/nvcc", option]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    if "--compress-mode" in ask("--help"):  # nvcc 12.8 and later
        NVCC_FLAGS.append("--compress-mode=size")
    listed = ask("--list-gpu-arch")
    known = [a for a in ARCHITECTURES if f"compute_{a.replace('.', '')}" in listed.split()]
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(known) + "+PTX")


def sources() -> list[str]:
    # Relative, as setuptools wants them. CppExtension passes .cu files to nvcc, and needs for it
    # neither a GPU nor a CUDA build of torch.
    folders = ["csrc", "csrc/cpu", "csrc/cuda"] if TOOLKIT else ["csrc", "csrc/cpu"]
    return sorted(
        name
        for folder in folders
        for name in glob(f"{folder}/*.cpp", root_dir=ROOT) + glob(f"{folder}/*.cu", root_dir=ROOT)
    )


def headers() -> list[str]:
    return sorted(
        name
        for suffix in ("h", "inc", "cuh")
        for name in glob(f"csrc/**/*.{suffix}", root_dir=ROOT, recursive=True)
    )


def find_compiler() -> str:
    for command in (os.environ.get("CXX", ""), "g++", "c++", "clang++"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return command
        if words and command == os.environ.get("CXX"):
            raise SystemExit(
                f"CXX={command} names no C++ compiler on PATH: correct or unset it, build again."
            )
    raise SystemExit(
        "mmix_fast needs a C++ compiler (C++20) and none was found: install g++ "
        "(Debian, Ubuntu: `apt-get install g++`; Fedora: `dnf install gcc-c++`) "
        "or set CXX to yours, then build again."
    )


class Build(BuildExtension):
    def run(self) -> None:
        os.environ["CXX"] = find_compiler()  # torch would try c++ alone, setuptools Python's own
        include = Path(sysconfig.get_path("include"))
        if not (include / "Python.h").exists():
            raise SystemExit(
                "mmix_fast needs the C headers of Python and Python.h was not found: install "
                "python3-dev (Fedora: python3-devel), then build again."
            )
        super().run()


TOOLKIT = find_toolkit()
cuda: dict[str, list[str]] = {}
if TOOLKIT:
    cpp_extension.CUDA_HOME = str(TOOLKIT)
    set_architectures(TOOLKIT)
    cuda = {
        "library_dirs": [str(TOOLKIT / "lib64")],
        "libraries": ["cudart_static", "rt", "dl", "pthread"],
        # The one symbol of a CUDA torch that is needed is weak, so nothing else asks for libtorch.
        "extra_link_args": ["-Wl,--push-state,--no-as-needed", "-ltorch", "-Wl,--pop-state"],
    }

setup(
    ext_modules=[
        CppExtension(
            "mmix_fast._C",
            sources(),
            depends=headers(),
            include_dirs=[str(ROOT / "csrc"), *([str(TOOLKIT / "include")] if TOOLKIT else [])],
            extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
            py_limited_api=True,
            **cuda,
        )
    ],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
