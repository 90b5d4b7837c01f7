"""The draw of one forward (layer, λ and pairing), made on the host or inside a graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..sampling import Mix


@dataclass(frozen=True, eq=False)
class Draw:
    """``layer`` is a number drawn on the host, or a 0-dim tensor (-1: none) drawn in a graph."""

    layer: int | Tensor
    mix: Mix

    def at(self, number: int | None) -> Mix | None:
        """The Mix of layer ``number``, or None. In a graph λ = 1 if another layer was drawn."""
        if number is None:
            return None
        if isinstance(self.layer, int):
            return self.mix if self.layer == number else None
        return Mix(self.mix.perm, torch.where(self.layer == number, self.mix.lam, 1.0))


def on_host(
    sample: Callable[[], Mix], layers: int, prob: float, generator: torch.Generator | None
) -> Draw | None:
    """None with probability ``1 - prob``; else one of ``layers`` layer numbers, and a sample."""
    if generator is not None and generator.device.type != "cpu":
        generator = None  # reading a draw made on a GPU would make the host wait
    with real_tensors():
        if prob < 1:
            chance = torch.rand((), generator=generator, dtype=torch.float32, device="cpu")
            if chance.item() >= prob:
                return None
        number = int(torch.randint(layers, (), generator=generator, device="cpu"))
    return Draw(number, sample())


def in_graph(mix: Mix, layers: int, prob: Tensor) -> Draw:
    device = mix.perm.device
    layer = torch.randint(layers, (), device=device)
    off = torch.rand((), dtype=torch.float64, device=device) >= prob
    return Draw(torch.where(off, -1, layer), Mix(mix.perm, torch.where(off, 1.0, mix.lam)))


def real_tensors() -> AbstractContextManager[Any]:
    """Turns off FakeTensorMode and other modes, whose values cannot be read on the host."""
    if torch._C._len_torch_dispatch_stack():
        return torch.utils._python_dispatch._disable_current_modes()
    return nullcontext()
