"""What torch.compile has met of a ManifoldMixup, counted on the host at trace time.

A graph may not count by itself: inside a checkpoint Dynamo forbids to write a counter.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any
from weakref import WeakValueDictionary, finalize, ref

import torch


class Running:
    """What the layers of a graph mix with: the draw of the forward that runs, or None."""

    def __init__(self) -> None:
        self.draw: Any = None


# By token, and global, since Dynamo fixes the shapes of tensors that it reaches through a module,
# as the attributes of a hook are: a graph for each batch size.
running: dict[str, Running] = {}

_FORWARDS = "forwards of the root"  # counted beside the layers
_numbers = itertools.count()
_traces: WeakValueDictionary[str, Traces] = WeakValueDictionary()


class Traces:
    def __init__(self) -> None:
        self.token = f"trace {next(_numbers)}"  # a string, since Dynamo makes integers symbolic
        self.met: set[str] = set()
        self.context: ref[Any] | None = None  # weak: a finished trace need not be kept
        self.runs: Counter[str] = Counter()
        _traces[self.token] = self
        running[self.token] = Running()
        finalize(self, running.pop, self.token)
        for function in (forward_in_trace, forwards_so_far, runs_in_trace, met_in_traces):
            torch.compiler.assume_constant_result(function)  # imports Dynamo: not at import time

    def present(self) -> Counter[str]:
        """How often the present forward in the present trace has met each layer."""
        context = torch._guards.TracingContext.try_get()
        if self.context is None or self.context() is not context:
            self.context, self.runs = ref(context), Counter()
        return self.runs


def forward_in_trace(token: str) -> int:
    """A forward of the root begins: says how many the present trace has met."""
    traces = _traces[token]
    traces.runs = Counter({_FORWARDS: traces.present()[_FORWARDS] + 1})
    return traces.runs[_FORWARDS]


def forwards_so_far(token: str) -> int:
    return _traces[token].present()[_FORWARDS]


def runs_in_trace(token: str, layer: str) -> int:
    """Counts a layer, and says how often the present forward in the trace has met it."""
    runs = _traces[token].present()
    _traces[token].met.add(layer)
    runs[layer] += 1
    return runs[layer]


def met_in_traces(token: str, layer: str) -> bool:
    return layer in _traces[token].met
