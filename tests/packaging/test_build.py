"""setup.py --version: how it finds CUDA, and what it writes into build.json. Nothing is built."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import mmix_fast
from mmix_fast import info
from tests.support.cases import run

ROOT = Path(__file__).resolve().parents[2]
PATH = str(ROOT / "setup.py")
SETUP = """
import glob, json, runpy, shutil, sys
import torch.utils.cpp_extension as c
if {hidden}:  # no toolkit anywhere
    c.CUDA_HOME, shutil.which = None, lambda name: None
    glob.glob = lambda *args, **kw: []
sys.argv = ["setup.py", "--version"]
names = runpy.run_path({setup!r})
print("toolkit:", names["TOOLKIT"])
print(json.dumps(names["facts"]()))
"""
NVCC = """#!/bin/sh
case $1 in
  --version) echo "Cuda compilation tools, release 12.6, V12.6.85";;
  --list-gpu-arch) printf "compute_75\\ncompute_80\\ncompute_90\\n";;
esac
"""


@pytest.mark.parametrize(
    "wish, message",
    [
        ("1", "MMIX_FAST_CUDA=1 asks for the CUDA kernels, but no CUDA toolkit was found"),
        ("yes", "MMIX_FAST_CUDA must be 0, 1 or auto, got 'yes'"),
    ],
)
def test_cuda_without_a_toolkit_and_a_bad_value_are_errors(wish, message):
    done = run(
        SETUP.format(hidden=True, setup=PATH), MMIX_FAST_CUDA=wish, CUDA_HOME="", CUDA_PATH=""
    )
    assert done.returncode != 0 and message in done.stderr


@pytest.mark.parametrize("wish, hidden", [("auto", True), ("0", False)])
def test_without_cuda(wish, hidden):
    done = run(
        SETUP.format(hidden=hidden, setup=PATH), MMIX_FAST_CUDA=wish, CUDA_HOME="", CUDA_PATH=""
    )
    assert done.returncode == 0 and "toolkit: None" in done.stdout, done.stderr
    version, _, facts = done.stdout.splitlines()
    assert version == mmix_fast.__version__ == json.loads(facts)["version"]
    assert json.loads(facts)["cuda"] is None and not json.loads(facts)["architectures"]
    # The hint is printed once, and only for `auto`.
    assert done.stderr.count("the CUDA kernels are not built; set CUDA_HOME") == (wish == "auto")


@pytest.fixture
def toolkit(tmp_path):
    """The folder of a fake CUDA toolkit with three architectures."""
    for folder in ("bin", "include"):
        (tmp_path / folder).mkdir()
    (tmp_path / "include/cuda_runtime.h").touch()
    (tmp_path / "bin/nvcc").write_text(NVCC)
    (tmp_path / "bin/nvcc").chmod(0o755)
    return str(tmp_path)


@pytest.mark.parametrize(
    "wish, architectures",
    [
        ("", "sm_75 sm_80 sm_90 compute_90"),
        ("9.0a;8.0+PTX", "sm_80 sm_90a compute_80"),
    ],
)
def test_a_toolkit_is_named_by_the_version_and_the_facts(toolkit, wish, architectures):
    listed = {"TORCH_CUDA_ARCH_LIST": wish} if wish else {}
    done = run(
        SETUP.format(hidden=False, setup=PATH), MMIX_FAST_CUDA="1", CUDA_HOME=toolkit, **listed
    )
    assert done.returncode == 0, done.stderr
    version, home, facts = done.stdout.splitlines()
    assert home == f"toolkit: {toolkit}"
    assert version == f"{mmix_fast.__version__}+cuda12.6" == json.loads(facts)["version"]
    assert json.loads(facts)["cuda"] == "12.6"
    assert json.loads(facts)["architectures"] == architectures.split()


def test_an_architecture_that_nvcc_lacks_is_an_error(toolkit):
    done = run(
        SETUP.format(hidden=False, setup=PATH),
        MMIX_FAST_CUDA="1",
        CUDA_HOME=toolkit,
        TORCH_CUDA_ARCH_LIST="7.0;9.0",
    )
    assert done.returncode != 0 and not done.stdout
    assert (
        f"TORCH_CUDA_ARCH_LIST=7.0;9.0 asks for compute_70, which {toolkit}/bin/nvcc does not "
        "compile for: it knows compute_75, compute_80, compute_90."
    ) in done.stderr


def test_the_commit_is_that_of_the_checkout_or_of_the_sdist(tmp_path, monkeypatch):
    (tmp_path / "mmix_fast").mkdir()
    for name in ("setup.py", "mmix_fast/__init__.py", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMIX_FAST_CUDA", "0")
    monkeypatch.setenv("PATH", os.environ["PATH"])  # setup.py prepends to it
    monkeypatch.setattr(sys, "argv", ["setup.py", "--version"])
    commit = runpy.run_path(str(tmp_path / "setup.py"))["commit"]
    assert commit() == "unknown"

    def git(*words):
        who = ("-c", "user.name=test", "-c", "user.email=test")
        done = subprocess.run(
            ["git", *who, *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "all")
    head = git("rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", head) and commit() == head
    (tmp_path / "LICENSE").write_text("edited")
    assert commit() == f"{head}-dirty"
    (tmp_path / "COMMIT").write_text("carried\n")  # as in an sdist that lies inside a checkout
    assert commit() == "carried"


def test_info_tells_what_was_built(tmp_path, monkeypatch):
    assert info.built() in info.table()
    monkeypatch.setattr(info, "FACTS", tmp_path / "build.json")
    assert info.built() == "not built: no build.json beside info.py"
    facts = {"version": "1.2+cuda12.6", "commit": "abc", "torch": "2.13.0", "cuda": "12.6"}
    info.FACTS.write_text(json.dumps({**facts, "architectures": ["sm_90", "compute_90"]}))
    assert info.built() == (
        "built as 1.2+cuda12.6 from commit abc against torch 2.13.0, CUDA 12.6 for sm_90 compute_90"
    )
    info.FACTS.write_text(json.dumps({**facts, "cuda": None, "architectures": []}))
    assert info.built().endswith("against torch 2.13.0, without CUDA")


def test_the_release_takes_the_pinned_versions():
    text = (ROOT / "pyproject.toml").read_text()
    dev = text[text.index("\ndev = [") : text.index("[tool.cibuildwheel]")]
    release = text[text.index("[tool.cibuildwheel]") : text.index("[tool.ruff]")]
    torch = re.search(r"^TORCH\s*:=\s*(\S+)$", (ROOT / "Makefile").read_text(), re.M)[1]
    pins = set(re.findall(r"[\w-]+==[\w.]+", release))
    assert len(pins) == 4 and pins <= {torch, *re.findall(r'"([\w-]+==[\w.]+)"', dev)}
