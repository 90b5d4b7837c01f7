"""The loss of sharded classes in one process: the parts of all ranks are made one by one."""

import pytest
import torch

from mmix_fast.distributed import cross_entropy, sharded_loss
from mmix_fast.distributed.collective import Shard

DEFAULTS = {
    "target_b": None,
    "weight": None,
    "ignore_index": -100,
    "reduction": "mean",
    "label_smoothing": 0.0,
    "z_loss": 0.0,
    "softcap": None,
    "inplace_backward": False,
}


class _Sent(Exception):
    pass


def of_every_shard(logits, cuts, *args, **options):
    """The loss that each rank gets, and the part of each row that each rank sends.

    ``logits``: one tensor for each rank, of the classes between two ``cuts``.
    """
    parts = []

    def send(part, shard, failed=False):
        assert not failed
        parts.append(part.detach().clone())
        raise _Sent

    def receive(part, shard, failed=False):
        return torch.stack(parts), None

    def call(z, begin):
        shard = Shard(None, cuts[-1], begin, z.shape[1], trusted=True)
        return cross_entropy.sharded(shard, z, *args, **(DEFAULTS | options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded_loss, "refuse", lambda part, shard, failure: _raise(failure))
        patch.setattr(sharded_loss, "gather", send)
        for z, begin in zip(logits, cuts, strict=False):
            with pytest.raises(_Sent):
                call(z, begin)
        patch.setattr(sharded_loss, "gather", receive)
        return [call(z, begin) for z, begin in zip(logits, cuts, strict=False)], parts


def _raise(failure):
    raise failure
