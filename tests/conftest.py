import contextlib
import os

# Threads of OpenMP sleep while they wait, instead of spinning: if several tests run at once, their
# thousands of short parallel regions take a third of the time. Set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

import mmix_fast
from mmix_fast import dispatch
from tests.cuda_emulation import emulation
from tests.support import gpu

# Backends of CPU tensors. Modules with `RUNS_ON_GPU = True` also take those of a GPU, which then is
# the default device, except in tests marked `on_cpu`. Triton's interpreter has a process of its
# own: tests/backends/test_triton.py.
if os.environ.get("TRITON_INTERPRET") == "1":
    ON_CPU, ON_GPU = ["triton"], []
else:
    every = (*dispatch.BACKENDS, emulation.BACKEND)
    ON_CPU = [b.name for b in every if b.device in (None, "cpu")]
    assert emulation.BACKEND.name in ON_CPU  # else its tests would silently be missing
    ON_GPU = gpu.BACKENDS


@pytest.fixture(params=[*ON_CPU, *(pytest.param(name, marks=pytest.mark.gpu) for name in ON_GPU)])
def backend(request, monkeypatch):
    if request.param == emulation.BACKEND.name:
        emulation.load().set_seed(0)
        monkeypatch.setattr(dispatch, "BACKENDS", (*dispatch.BACKENDS, emulation.BACKEND))
    on_gpu = request.param in ON_GPU
    only_cpu = request.node.get_closest_marker("on_cpu") is not None
    if on_gpu and (only_cpu or not getattr(request.module, "RUNS_ON_GPU", False)):
        pytest.skip("its tensors are on the CPU")
    gpu.need(request.param)
    device = torch.device(gpu.DEVICE) if on_gpu else contextlib.nullcontext()
    with mmix_fast.use_backend(request.param), device:
        yield request.param


def pytest_configure(config):
    config.addinivalue_line("markers", "on_cpu: its tensors are on the CPU")
    # Of pytest-xdist, which a GPU image may lack.
    config.addinivalue_line("markers", "xdist_group(name): run on the same worker as its like")


def pytest_collection_modifyitems(items):
    """Tests marked `first` begin first: at the end, one would keep a single worker busy."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
