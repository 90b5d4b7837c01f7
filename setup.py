"""Builds mmix_fast._C, the stable-ABI extension: one cp310-abi3 binary for all torch >= 2.10.

Everything that is not the extension is in pyproject.toml.
"""

import os
import shlex
import shutil
import sysconfig
from glob import glob
from pathlib import Path

from setuptools import setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    raise SystemExit(
        f"mmix_fast is built against PyTorch, which this Python cannot import ({error}). "
        "Run `pip install torch` first, then `pip install -e . --no-build-isolation`."
    ) from error

ROOT = Path(__file__).resolve().parent
# ninja is looked for on PATH, where an environment that was not activated does not have it.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
CXX_FLAGS = [
    "-O3",
    "-std=c++20",
    "-fvisibility=hidden",
    # The results are defined bit for bit: no fused multiply-add, and of the fast-math family only
    # the two flags that cannot change a value.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",  # 2.10, the oldest torch that can load the binary
]


def sources() -> list[str]:
    # Relative, as setuptools wants them. CUDA sources (csrc/cuda/*.cu) join here, where a toolkit
    # is found by its headers: CppExtension passes .cu files to nvcc even on a CPU build of torch.
    return sorted(glob("csrc/*.cpp", root_dir=ROOT) + glob("csrc/cpu/*.cpp", root_dir=ROOT))


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


setup(
    ext_modules=[
        CppExtension(
            "mmix_fast._C",
            sources(),
            depends=headers(),
            include_dirs=[str(ROOT / "csrc")],
            extra_compile_args={"cxx": CXX_FLAGS},
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
