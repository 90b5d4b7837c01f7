"""Builds mmix_fast._C, the stable-ABI extension: one cp310-abi3 binary for all torch >= 2.10.

Everything that is not the extension is in pyproject.toml.
"""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from glob import glob
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

try:
    import torch
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
PLAIN_VERSION = re.search('__version__ = "(.*)"', (ROOT / "mmix_fast/__init__.py").read_text())[1]
# The same source gives the same file wherever it lies: no folder's name in __FILE__, and none of
# the debug information that Python's own flags ask for, which would be most of the file.
ANYWHERE = [
    "-g0",
    f"-ffile-prefix-map={ROOT}=.",
    f"-ffile-prefix-map={Path(torch.__file__).parent}=torch",
]
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
    *ANYWHERE,
    TARGET,
]
NVCC_FLAGS = [
    "-O3",
    "-std=c++20",
    "-Xcompiler",
    # Quoted for nvcc and for the shell that it starts: a folder's name may have spaces and commas.
    # So the headers' folders are here too; of a -I of its own nvcc makes two at a comma.
    ",".join(
        f'"{flag}"'
        for flag in [
            "-fvisibility=hidden",
            *ANYWHERE,
            f"-I{ROOT / 'csrc'}",
            f"-I{Path(torch.__file__).parent / 'include'}",
        ]
    ),
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
    print(
        "mmix_fast: no CUDA toolkit (nvcc and its headers) was found, so the CUDA kernels are not "
        "built; set CUDA_HOME to one for them.",
        file=sys.stderr,
    )
    return None


def ask_nvcc(home: Path, option: str) -> str:
    command = [home / "bin/nvcc", option]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def set_architectures(home: Path) -> list[str]:
    """By default all that this toolkit compiles for, and PTX of the last for what comes later.

    Returns what nvcc is asked for, by nvcc's names.
    """
    if "--compress-mode" in ask_nvcc(home, "--help"):  # nvcc 12.8 and later
        NVCC_FLAGS.append("--compress-mode=size")
    able = ask_nvcc(home, "--list-gpu-arch").split()
    known = [a for a in ARCHITECTURES if f"compute_{a.replace('.', '')}" in able]
    wish = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(known) + "+PTX")
    flags = " ".join(cpp_extension._get_cuda_arch_flags())
    for asked in re.findall(r"arch=(compute_\d+)", flags):
        if asked not in able:
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST={wish} asks for {asked}, which {home / 'bin/nvcc'} does not "
                f"compile for: it knows {', '.join(able)}. Name some of these, or unset it."
            )
    named = re.findall(r",code=(\w+)", flags)
    return sorted(named, key=lambda name: (name[0] == "c", int(re.sub(r"\D", "", name))))


def commit() -> str:
    """An sdist carries its commit in a file; a checkout is asked, and says where it was edited."""
    carried = ROOT / "COMMIT"
    if carried.exists():
        return carried.read_text().strip()
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        return "unknown"
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"  # git refuses a folder of another user


def facts() -> dict[str, object]:
    """What `python -m mmix_fast.info` tells of the binary."""
    return {
        "version": VERSION,
        "commit": commit(),
        "torch": torch.__version__,
        "cuda": CUDA,
        "architectures": CODE,
    }


def sources() -> list[str]:
    # Relative, as setuptools wants them. CppExtension passes .cu files to nvcc, and needs for it
    # neither a GPU nor a CUDA build of torch.
    folders = ["csrc", "csrc/cpu", "csrc/cpu/simd", *(["csrc/cuda"] if TOOLKIT else [])]
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
        # Only ninja sees that flags or the toolkit changed; setuptools would keep the old file, and
        # the facts would be untrue.
        self.force = True
        super().run()
        beside = Path(self.get_ext_fullpath("mmix_fast._C")).with_name("build.json")
        beside.write_text(json.dumps(facts(), indent=2) + "\n")


class Sdist(sdist):
    """It serves CPU and CUDA, so no local version; one commit gives one file, bit for bit."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.distribution.metadata.version = PLAIN_VERSION

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        (Path(base_dir) / "COMMIT").write_text(commit() + "\n")

    def make_archive(self, base_name: str, format: str, **options: str) -> str:
        when = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))

        def same(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = when, 0, 0, "", ""
            entry.mode = 0o755 if entry.mode & 0o100 else 0o644
            return entry

        with (
            open(f"{base_name}.tar.gz", "wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=when) as packed,
            tarfile.open(fileobj=packed, mode="w") as tar,
        ):
            tar.add(options["base_dir"], filter=same)  # in the order of the names
        return f"{base_name}.tar.gz"


TOOLKIT = find_toolkit()
CUDA = TOOLKIT and re.search(r"release (\S+),", ask_nvcc(TOOLKIT, "--version"))[1]
VERSION = f"{PLAIN_VERSION}+cuda{CUDA}" if CUDA else PLAIN_VERSION
CODE: list[str] = []
cuda: dict[str, list[str]] = {}
if TOOLKIT:
    cpp_extension.CUDA_HOME = str(TOOLKIT)
    CODE = set_architectures(TOOLKIT)
    cuda = {
        "library_dirs": [str(TOOLKIT / "lib64")],
        "libraries": ["cudart_static", "rt", "dl", "pthread"],
        # The one symbol of a CUDA torch that is needed is weak, so nothing else asks for libtorch.
        "extra_link_args": ["-Wl,--push-state,--no-as-needed", "-ltorch", "-Wl,--pop-state"],
    }

setup(
    version=VERSION,
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
    cmdclass={"build_ext": Build, "sdist": Sdist},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
