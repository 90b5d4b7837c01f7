import pytest
import torch

import mmix_fast
from mmix_fast.dispatch import BACKENDS


@pytest.fixture(params=[b.name for b in BACKENDS])
def backend(request):
    status = mmix_fast.backends()[request.param]
    if not status.usable:
        pytest.skip("; ".join(status.reasons))
    with mmix_fast.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
