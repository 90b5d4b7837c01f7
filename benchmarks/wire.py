"""Counts the collectives that a block runs, and what they bring to this rank over the wire."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GATHERS, REDUCES = ("_allgather_base_", "allgather_"), ("allreduce_",)


class Wire(TorchDispatchMode):
    """``sent``: the bytes that this rank gives to each collective. ``received``: bytes from other
    ranks, by the algorithm that receives least.

    An all-gather brings the tensors of all other ranks; an all-reduce in a ring two times
    (ranks-1)/ranks of its own size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[int] = []
        self.received = 0.0

    @property
    def calls(self) -> int:
        return len(self.sent)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.count(func._schema.name.removeprefix("c10d::"), args)
        return func(*args, **(kwargs or {}))

    def count(self, name: str, args: Any) -> None:
        if name not in GATHERS + REDUCES:
            raise NotImplementedError(f"cannot tell the bytes of the collective {name}")
        others = dist.get_world_size() - 1
        # A gather has the tensors that it fills first, and then its own.
        given = args[1] if name in GATHERS else args[0]
        size = sum(t.nbytes for t in tree_leaves(given) if isinstance(t, Tensor))
        self.sent.append(size)
        self.received += others * size * (1 if name in GATHERS else 2 / (others + 1))

    def of_rows(self, rows: int) -> dict[str, float]:
        return {"calls": self.calls, "bytes_a_row": self.received / rows}
