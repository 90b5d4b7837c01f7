import contextlib

import emulation
import pytest
import torch

import mmix_fast
from mmix_fast import dispatch

# Backends of CPU tensors; and, in modules that say `RUNS_ON_GPU = True`, the cuda backend, with a
# GPU as the default device.
ON_CPU = [b.name for b in (*dispatch.BACKENDS, emulation.BACKEND) if b.device in (None, "cpu")]
ON_GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=[*ON_CPU, ON_GPU])
def backend(request, monkeypatch):
    if request.param == emulation.BACKEND.name:
        emulation.load().set_seed(0)
        monkeypatch.setattr(dispatch, "BACKENDS", (*dispatch.BACKENDS, emulation.BACKEND))
    status = mmix_fast.backends()[request.param]
    if not status.usable:
        pytest.skip("; ".join(status.reasons))
    on_gpu = request.param == "cuda"
    if on_gpu and not getattr(request.module, "RUNS_ON_GPU", False):
        pytest.skip("its tensors are on the CPU")
    device = torch.device("cuda") if on_gpu else contextlib.nullcontext()
    with mmix_fast.use_backend(request.param), device:
        yield request.param


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
