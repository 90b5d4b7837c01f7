"""What `setup.py` does about CUDA, asked for its version so that nothing is built."""

from pathlib import Path

import pytest
from cases import run

PATH = str(Path(__file__).resolve().parents[1] / "setup.py")
SETUP = """
import glob, runpy, shutil, sys
import torch.utils.cpp_extension as c
if {hidden}:  # no toolkit anywhere
    c.CUDA_HOME, shutil.which = None, lambda name: None
    glob.glob = lambda *args, **kw: []
sys.argv = ["setup.py", "--version"]
names = runpy.run_path({setup!r})
print("toolkit:", names["TOOLKIT"])
"""


@pytest.mark.parametrize(
    "wish, message",
    [
        ("1", "MMIX_FAST_CUDA=1 asks for the CUDA kernels, but no CUDA toolkit was found"),
        ("yes", "MMIX_FAST_CUDA must be 0, 1 or auto, got 'yes'"),
    ],
)
def test_a_wish_that_cannot_be_met_is_an_error(wish, message):
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
