"""Compiles single files with the flags of setup.py, by nvcc and clang. Nothing is built."""

import json
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

from tests.support.cases import run

ROOT = Path(__file__).resolve().parents[2]
FLAGS = """
import json, os, runpy, sys
os.chdir({folder!r})
sys.argv = ["setup.py", "--version"]
names = runpy.run_path("setup.py")
print(json.dumps([names["CXX_FLAGS"], names["NVCC_FLAGS"]]))
"""
NVCC = shutil.which("nvcc")
CLANG = next(filter(shutil.which, ["clang++", *(f"clang++-{v}" for v in range(22, 12, -1))]), None)


def flags_in(folder):
    """setup.py's flags for C++ and for nvcc, for a project in this folder."""
    done = run(FLAGS.format(folder=str(folder)), MMIX_FAST_CUDA="0")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize("name", ["my project", "a,b", "my, it's (1) größe & more"])
def test_a_cuda_build_in_any_folder(tmp_path, name):
    folder = tmp_path / name
    (folder / "mmix_fast").mkdir(parents=True)
    for file in ("setup.py", "mmix_fast/__init__.py", "pyproject.toml", "README.md", "LICENSE"):
        (folder / file).write_text((ROOT / file).read_text())
    _, flags = flags_in(folder)
    source, built = folder / "one.cu", folder / "one.o"
    (folder / "csrc").mkdir()
    (folder / "csrc/place.h").write_text("inline const char *place() { return __FILE__; }\n")
    source.write_text('#include "place.h"\nconst char *where() { return place(); }\n')
    command = [NVCC, *flags, "-arch=sm_90", "-c", source, "-o", built]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # All flags were applied: file names in the object are relative, without the folder's name.
    text = built.read_bytes()
    assert b"./csrc/place.h" in text and str(tmp_path).encode() not in text


def check_with_clang(*sources):
    flags, _ = flags_in(ROOT)
    include = Path(torch.__file__).parent / "include"
    folders = (ROOT / "csrc", include, include / "torch/csrc/api/include")
    command = [CLANG, "-fsyntax-only", "-Wall", "-Werror", *flags, "-DTORCH_EXTENSION_NAME=_C"]
    command += [f"-I{folder}" for folder in folders]
    command += ["-isystem", sysconfig.get_path("include"), *sources]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# setup.py uses clang++ if there is no g++.
@pytest.mark.skipif(CLANG is None, reason="no clang++ is on PATH")
def test_clang_compiles_the_row_kernels():
    check_with_clang(*(ROOT / "csrc/cpu/simd").glob("*.cpp"), ROOT / "csrc/cpu/dispatch.cpp")


@pytest.mark.deep
@pytest.mark.skipif(CLANG is None, reason="no clang++ is on PATH")
def test_clang_compiles_every_source():
    check_with_clang(ROOT / "csrc/module.cpp", *(ROOT / "csrc/cpu").rglob("*.cpp"))


def test_no_vector_builtin_that_only_one_compiler_has():
    """Checks the source, since clang++ may be missing here.

    GCC has __builtin_shuffle, and GCC 11 lacks __builtin_shufflevector: each must be in the branch
    of `#ifdef __clang__` for its compiler.
    """
    asked = re.compile(r"#ifdef __clang__\n(.*?)#else\n(.*?)#endif", re.S)
    for source in (ROOT / "csrc").rglob("*"):
        text = "" if source.is_dir() else source.read_text()
        for clang, gcc in asked.findall(text):
            assert not re.search(r"__builtin_shuffle\b", clang), source
            assert "__builtin_shufflevector" not in gcc, source
        assert "__builtin_shuffle" not in asked.sub("", text), source
