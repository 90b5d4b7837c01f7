"""Every test here runs on each backend of a GPU, with tensors on the GPU by default."""

import pytest
import torch

import mmix_fast
from tests.support import gpu


@pytest.fixture(params=gpu.BACKENDS, autouse=True)
def on_gpu(request):
    gpu.need(request.param)
    with mmix_fast.use_backend(request.param), torch.device(gpu.DEVICE):
        yield request.param
