import contextlib
import os

# OpenMP's threads wait for each other, and for what else runs on their cores, asleep and not in a
# loop: the thousands of short parallel regions of the tests take a third of the time. Before torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

import mmix_fast
from mmix_fast import dispatch
from tests.cuda_emulation import emulation

# Backends of CPU tensors; and, in modules that say `RUNS_ON_GPU = True`, those of a GPU, with it as
# the default device. Triton's interpreter has a process for itself (started by test_triton.py).
if os.environ.get("TRITON_INTERPRET") == "1":
    ON_CPU, ON_GPU = ["triton"], []
else:
    every = (*dispatch.BACKENDS, emulation.BACKEND)
    ON_CPU = [b.name for b in every if b.device in (None, "cpu")]
    assert emulation.BACKEND.name in ON_CPU  # else its tests would vanish without a word
    ON_GPU = [b.name for b in every if b.device == "cuda"]


@pytest.fixture(params=[*ON_CPU, *(pytest.param(name, marks=pytest.mark.gpu) for name in ON_GPU)])
def backend(request, monkeypatch):
    if request.param == emulation.BACKEND.name:
        emulation.load().set_seed(0)
        monkeypatch.setattr(dispatch, "BACKENDS", (*dispatch.BACKENDS, emulation.BACKEND))
    status = mmix_fast.backends()[request.param]
    if not status.usable:
        pytest.skip("; ".join(status.reasons))
    on_gpu = request.param in ON_GPU
    if on_gpu and not getattr(request.module, "RUNS_ON_GPU", False):
        pytest.skip("its tensors are on the CPU")
    device = torch.device("cuda") if on_gpu else contextlib.nullcontext()
    with mmix_fast.use_backend(request.param), device:
        yield request.param


def pytest_collection_modifyitems(items):
    """The longest begin first: last, one would keep a worker of pytest-xdist, the others idle."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
