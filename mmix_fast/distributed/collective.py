"""The one collective of a sharded loss: what each rank has of each row, and which classes it has.

A rank that cannot take part must not leave the others waiting: it sends its failure in the same
message, and then every rank raises.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..tracing import readable

# Its name up to torch 2.12, and the one since.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
PART = 4  # numbers of a row, see cross_entropy_part in schemas.py


class Shard(NamedTuple):
    """The classes that this rank has, of ``num_classes``."""

    group: Any
    num_classes: int
    class_offset: int
    classes: int
    trusted: bool = False  # known to fit those of the other ranks


def check_group(group: Any) -> Any:
    """The process group; None: the default one. Raises on a process that is no member."""
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "torch.distributed must be initialized before the loss of sharded classes"
        )
    if group is None:
        return dist.group.WORLD
    member = isinstance(group, dist.ProcessGroup)
    if group is not dist.GroupMember.NON_GROUP_MEMBER and not member:
        raise TypeError(f"group must be a ProcessGroup or None, got {type(group).__name__}")
    if not member or dist.get_rank(group) < 0:
        raise ValueError(f"group must have this process, rank {dist.get_rank()}, as a member")
    return group


def gather(part: Tensor, shard: Shard, failed: bool = False) -> tuple[Tensor, Tensor | None]:
    """(the parts (ranks, rows, 4) of all ranks, None or a 0-dim bool: the shards fit together).

    On the CPU raises ValueError, the same on every rank, if they do not.
    """
    ranks = dist.get_world_size(shard.group)
    message = torch.cat([_header(part, shard, failed), part])
    if torch.compiler.is_compiling():
        every = torch.distributed._functional_collectives.all_gather_tensor(message, 0, shard.group)
    else:
        every = message.new_empty((ranks * message.shape[0], PART))
        _all_gather(every, message, group=shard.group)
    every = every.reshape(ranks, -1, PART)
    parts = every[:, 1:]
    headers = every[:, 0].view(_integer(part))
    if headers.is_cpu and readable(headers):
        _check(headers.tolist(), dist.get_rank(shard.group))
        return parts, None
    return parts, None if shard.trusted else _fits(headers)


def _integer(part: Tensor) -> torch.dtype:
    """The integers whose bits are sent in place of a row."""
    return torch.int64 if part.dtype == torch.float64 else torch.int32


def _header(part: Tensor, shard: Shard, failed: bool) -> Tensor:
    header = part.new_zeros(1, PART).view(_integer(part))
    numbers = shard.num_classes, shard.class_offset, shard.classes, int(failed)
    for at, number in enumerate(numbers):
        header[0, at].fill_(number)  # a copy from pageable memory cannot be captured in a graph
    return header.view(part.dtype)


def _check(headers: list[list[int]], rank: int) -> None:
    totals = [total for total, *_ in headers]
    if len(set(totals)) > 1:
        raise ValueError(f"num_classes must be the same on all ranks, got {_shown(totals)}")
    ranges = [(begin, begin + size) for _, begin, size, _ in headers]
    at = 0
    for begin, end in sorted(r for r in ranges if r[0] != r[1]):
        if begin != at:  # a gap, or an overlap
            at = -1
            break
        at = end
    if at != totals[0]:
        shown = _shown([f"[{begin}, {end})" for begin, end in ranges])
        raise ValueError(
            f"the shards of all ranks must cover the classes [0, {totals[0]}) once, got {shown}"
        )
    failed = [r for r, header in enumerate(headers) if header[3]]
    if failed and rank not in failed:  # those that failed raise their own error
        raise RuntimeError(f"rank {failed[0]} of the group raised in its part of the loss")


def _shown(values: list[Any]) -> str:
    return ", ".join(str(value) for value in values[:8]) + ", ..." * (len(values) > 8)


def _fits(headers: Tensor) -> Tensor:
    """What _check raises for, as a 0-dim bool, without reading a value on the host."""
    total, begin, size, failed = headers.long().unbind(1)
    end = begin + size
    apart = (begin.unsqueeze(1) >= end) | (end.unsqueeze(1) <= begin) | (size == 0)
    apart = apart | torch.eye(len(total), dtype=torch.bool, device=total.device)
    good = (total == total[0]) & (begin >= 0) & (end <= total) & (failed == 0)
    return good.all() & (apart | (size.unsqueeze(1) == 0)).all() & (size.sum() == total[0])
