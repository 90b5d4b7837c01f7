"""Tests of the installed package against plain PyTorch.

Imports nothing of the source tree: copy this file to a folder of its own, and there run
`python -m pytest smoke.py`.
"""

import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmix_fast

LAM = 0.3
VERSION = importlib.metadata.version("mmix_fast")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def formula(x, perm):
    return LAM * x + (1 - LAM) * x[perm]


def test_the_installed_copy_is_tried():
    assert Path(mmix_fast.__file__).is_relative_to(sysconfig.get_path("platlib"))
    assert VERSION.split("+")[0] == mmix_fast.__version__


def test_extension_serves_the_cpu():
    assert mmix_fast.backends()["cpp"].usable, mmix_fast.backends()["cpp"].reasons


def test_cuda_ops_are_there_as_the_version_says():
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has("mmix_fast::mix", "CUDA") == ("+cuda" in VERSION)
    status = mmix_fast.backends()["cuda"]
    assert status.usable == ("+cuda" in VERSION and torch.cuda.is_available())
    assert status.usable or status.reasons


def test_info_tells_what_was_built():
    command = [sys.executable, "-m", "mmix_fast.info"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"built as {VERSION} from commit" in done.stdout and "instruction set" in done.stdout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 5), (32, 16, 7, 7)])
def test_mix_is_the_formula(dtype, shape):
    x, perm = torch.randn(shape, dtype=dtype), torch.randperm(shape[0])
    wide = x.double() if dtype == torch.float64 else x.float()
    want = formula(wide, perm).to(dtype)
    with mmix_fast.use_backend("cpp"):
        assert torch.equal(mmix_fast.mix(x, perm, LAM), want)
        assert mmix_fast.mix_(x, perm, LAM) is x and torch.equal(x, want)


def test_gradient_of_mix():
    x, perm = torch.randn(16, 9, requires_grad=True), torch.randperm(16)
    upstream = torch.randn(16, 9)
    (want,) = torch.autograd.grad(formula(x, perm), x, upstream)
    with mmix_fast.use_backend("cpp"):
        (got,) = torch.autograd.grad(mmix_fast.mix(x, perm, LAM), x, upstream)
        (again,) = torch.autograd.grad(mmix_fast.mix_(x * 1, perm, LAM), x, upstream)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(again, want)


def test_loss_and_its_gradient():
    logits, y = torch.randn(16, 10, requires_grad=True), torch.randint(10, (16,))
    perm = torch.randperm(16)
    want = LAM * F.cross_entropy(logits, y) + (1 - LAM) * F.cross_entropy(logits, y[perm])
    with mmix_fast.use_backend("cpp"):
        got = mmix_fast.mixed_cross_entropy(logits, y, perm, LAM)
        grads = [torch.autograd.grad(loss, logits)[0] for loss in (got, want)]
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*grads)


def test_targets():
    y, perm = torch.randint(10, (16,)), torch.randperm(16)
    with mmix_fast.use_backend("cpp"):
        got = mmix_fast.mix_targets(y, perm, LAM, num_classes=10)
    torch.testing.assert_close(got, formula(F.one_hot(y, 10).float(), perm))


def test_compiled():
    x, perm = torch.randn(16, 9), torch.randperm(16)
    compiled = torch.compile(lambda t: mmix_fast.mix(t * 2, perm, LAM) + 1, fullgraph=True)
    torch.testing.assert_close(compiled(x), formula(x * 2, perm) + 1)


def test_manifold_mixup_trains():
    model = nn.Sequential(nn.Linear(9, 32), nn.GELU(), nn.Linear(32, 4))
    mixup = mmix_fast.ManifoldMixup(model, layers=["", "0"], alpha=2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(16, 9), torch.randint(4, (16,))
    plain = lambda: F.cross_entropy(model.eval()(x), y).item()  # noqa: E731
    before = plain()
    model.train()
    for _ in range(20):
        loss = mixup.loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert plain() < before
