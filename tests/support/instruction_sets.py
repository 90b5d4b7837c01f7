"""Tests of the C++ losses by instruction set and by number of threads, each in a new process."""

import os
import subprocess
import sys

import pytest
import torch

from tests.support.cases import ROOT, run

BITS = """
import hashlib, itertools, torch, mmix_fast as m
torch.set_num_threads({threads})
from {module} import KINDS, LAYOUTS, problem
for kind, layout in itertools.product(KINDS, ("rows", "rows beside", "images", "channels_last")):
    for classes, dt in ((21, torch.float32), (170, torch.bfloat16), (21, torch.float64)):
        torch.manual_seed(classes)
        small = LAYOUTS[layout][0](classes, dt)
        z = torch.cat([small] * (1000 // len(small))).requires_grad_()
        y, perm, lam, options = problem(kind, z)
        loss = m.{op}(z, y, perm, lam, **options)
        for up in (1.0, 0.25):
            g, = torch.autograd.grad(loss, z, torch.tensor(up, dtype=loss.dtype), retain_graph=True)
            print(loss.item(), hashlib.sha256(g.contiguous().view(torch.uint8).numpy()).hexdigest())
"""


def check_bits_by_threads(isa, module, op, kinds):
    """The KINDS and LAYOUTS of the test module give the same bits with one thread and with two."""
    here = {"ATEN_CPU_CAPABILITY": isa, "PYTHONPATH": str(ROOT)}
    one, two = (run(BITS.format(threads=n, module=module, op=op), **here) for n in (1, 2))
    assert one.returncode == 0, one.stderr
    assert one.stdout == two.stdout and len(one.stdout.split()) == 2 * 2 * 3 * 4 * kinds


def run_tests_with(isa, file):
    """Runs the tests of the file with this instruction set."""
    best = torch.backends.cpu.get_cpu_capability().lower()
    if isa == best or (isa == "avx512" and isa not in best):
        pytest.skip("this set is the default, or the CPU lacks it")
    env = os.environ | {"ATEN_CPU_CAPABILITY": isa}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not deep", file]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
