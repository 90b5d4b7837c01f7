"""What ManifoldMixup's hooks rest on: copies, recomputation in backward, torch.compile."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .sampling import Mix

# Draws kept for recomputation: forwards that may be in flight before their backward (gradient
# accumulation, pipelines). Each keeps 8 bytes a sample.
KEPT_DRAWS = 64


class Hook:
    """Calls a method of ManifoldMixup, which must not travel with a copy or pickle of the model."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return InertHook, ()


class InertHook:
    """What a copied or unpickled model has in the place of a Hook."""

    def __call__(self, *args: Any) -> None:
        return None


@dataclass(frozen=True, eq=False)
class Draw:
    """``layer`` is a number drawn on the host, or a 0-dim tensor (-1: none) drawn in a graph."""

    layer: int | Tensor
    mix: Mix

    def at(self, number: int) -> Mix | None:
        """What layer ``number`` mixes with: λ = 1 where a graph drew another one."""
        if isinstance(self.layer, int):
            return self.mix if self.layer == number else None
        return Mix(self.mix.perm, torch.where(self.layer == number, self.mix.lam, 1.0))


def in_backward() -> bool:
    """True inside the autograd engine, where activation checkpointing recomputes a forward."""
    return torch._C._current_graph_task_id() != -1


class Recomputation:
    """Finds the draw of the forward that is recomputed, several of which may be in flight.

    Each autograd node has a number, counted up in the order of creation: the node whose backward
    asks for the recomputation was made by the forward with the last start at or before it.
    """

    def __init__(self) -> None:
        self._kept: deque[tuple[int, Draw | None]] = deque(maxlen=KEPT_DRAWS)

    def record(self, draw: Draw | None) -> None:
        # A reentrant checkpoint of the whole model makes its node, then calls us without grad mode.
        start = torch.autograd._get_sequence_nr() - (not torch.is_grad_enabled())
        self._kept.append((start, draw))

    def draw(self) -> Draw | None:
        node = torch._C._current_autograd_node()
        for start, draw in reversed(self._kept):
            if node is None or start <= node._sequence_nr():
                return draw
        if len(self._kept) == KEPT_DRAWS:
            raise RuntimeError(
                f"more than {KEPT_DRAWS} forwards lie between a checkpointed one and its backward"
            )
        return None


class Traces:
    """Which layers torch.compile has met, counted on the host at trace time.

    A graph may not count by itself: inside a checkpoint Dynamo forbids to write a counter.
    """

    def __init__(self) -> None:
        self.token = f"trace {next(_numbers)}"  # a string, since Dynamo makes integers symbolic
        self.met: set[str] = set()
        self.context: object = None
        self.runs: Counter[str] = Counter()
        _traces[self.token] = self
        for function in (runs_in_trace, met_in_traces):
            torch.compiler.assume_constant_result(function)  # imports Dynamo: not at import time


_numbers = itertools.count()
_traces: WeakValueDictionary[str, Traces] = WeakValueDictionary()


def runs_in_trace(token: str, layer: str) -> int:
    """Counts a layer, and says how often the present trace has met it."""
    traces, context = _traces[token], torch._guards.TracingContext.try_get()
    if traces.context is not context:
        traces.context, traces.runs = context, Counter()
    traces.met.add(layer)
    traces.runs[layer] += 1
    return traces.runs[layer]


def met_in_traces(token: str, layer: str) -> bool:
    return layer in _traces[token].met
