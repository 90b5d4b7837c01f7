"""The same question of shards on the host and on the device: do they cover the classes once?"""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmix_fast.distributed.collective import _check, _fits
from tests.support.properties import property_test

NUMBERS = st.integers(-1, 6)
RANKS = st.tuples(st.sampled_from([5, 5, 5, 6]), NUMBERS, st.integers(0, 6), st.just(0))


def fits_on_the_host(headers):
    try:
        _check(headers, rank=len(headers))  # of no rank: a failure is another's
    except (ValueError, RuntimeError):
        return False
    return True


@settings(property_test, max_examples=100)
@given(headers=st.lists(RANKS, min_size=1, max_size=4))
@example(headers=[(5, 0, 2, 0), (5, 2, 3, 0)])
@example(headers=[(5, 2, 3, 0), (5, 0, 2, 0), (5, 2, 0, 0)])  # any order, and an empty shard
@example(headers=[(5, 0, 5, 0), (5, 5, 0, 0)])
@example(headers=[(5, 0, 3, 0), (5, 2, 2, 0)])  # overlap, with the right number of classes
@example(headers=[(5, 0, 2, 0), (5, 2, 3, 0), (5, 2, 3, 0)])  # the last shard twice
@example(headers=[(5, 0, 2, 0), (5, 3, 3, 0)])  # a gap, and past the end
@example(headers=[(5, -1, 3, 0), (5, 2, 3, 0)])
@example(headers=[(5, 0, 2, 0), (6, 2, 3, 0)])
@example(headers=[(5, 0, 2, 1), (5, 2, 3, 0)])  # a rank that raised
def test_the_host_and_the_device_agree(headers):
    # An empty shard has no place that could be wrong, except for the device's simpler question.
    headers = [(c, b if n else max(0, min(b, c)), n, failed) for c, b, n, failed in headers]
    on_device = _fits(torch.tensor(headers, dtype=torch.int32))
    assert on_device.ndim == 0 and bool(on_device) == fits_on_the_host(headers)


def test_a_shard_that_does_not_fit_gives_nan_where_the_host_does_not_read(monkeypatch):
    from mmix_fast.distributed import sharded_loss
    from mmix_fast.distributed.collective import Shard

    z, y = torch.randn(3, 4, requires_grad=True), torch.tensor([0, 1, 2])
    monkeypatch.setattr(
        sharded_loss, "gather", lambda part, shard: (part[None], torch.tensor(False))
    )
    options = -100, "none", 0.0, 0.0, 0.0, 0, 9
    call = sharded_loss.ShardedCall("mmix_fast", options, Shard(None, 9, 0, 4))
    tensors = y, None, y, torch.tensor(0.3), None, None
    loss = sharded_loss.sharded_loss(z, tensors, call)
    assert loss.isnan().all()
    assert torch.autograd.grad(loss.sum(), z)[0].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numbers_of_classes_travel_exactly(dtype):
    """As integers in the bits of the floats: 2**24 + 1 is no float32."""
    from mmix_fast.distributed.collective import Shard, _header, _integer

    part = torch.zeros(2, 4, dtype=dtype)
    header = _header(part, Shard(None, 2**24 + 1, 2**24 - 1, 2), failed=True)
    assert header.dtype == dtype
    assert header.view(_integer(part)).tolist() == [[2**24 + 1, 2**24 - 1, 2, 1]]
