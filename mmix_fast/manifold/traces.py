"""What a ManifoldMixup asks at trace time, and counts of what torch.compile traces.

Traced code cannot count by itself: inside a checkpoint Dynamo forbids writing to a counter.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any
from weakref import WeakValueDictionary, finalize, ref

import torch
from torch import Tensor


class Running:
    """The draw of the running forward, for the layers of a graph; or None."""

    def __init__(self) -> None:
        self.draw: Any = None

    def stop(self) -> Any:
        draw, self.draw = self.draw, None
        return draw


# Keyed by token, and global: Dynamo makes the shapes of tensors static if it reaches them through a
# module (such as attributes of a hook), which would compile a graph for each batch size.
running: dict[str, Running] = {}

_FORWARDS = "forwards of the root"  # a key beside the layer names
_DYNAMOS_LIMIT = 8  # the default of torch._dynamo.config.recompile_limit
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
        for function in _AT_TRACE_TIME:
            torch.compiler.assume_constant_result(function)  # imports Dynamo, so only now

    def present(self) -> Counter[str]:
        """How often the current forward of the current trace has met each layer."""
        context = torch._guards.TracingContext.try_get()
        if self.context is None or self.context() is not context:
            self.context, self.runs = ref(context), Counter()
        return self.runs


def forward_in_trace(token: str) -> int:
    """Starts a forward of the root. Returns how many the current trace has met."""
    traces = _traces[token]
    traces.runs = Counter({_FORWARDS: traces.present()[_FORWARDS] + 1})
    return traces.runs[_FORWARDS]


def forwards_so_far(token: str) -> int:
    return _traces[token].present()[_FORWARDS]


def runs_in_trace(token: str, layer: str) -> int:
    """Counts a run of a layer. Returns how often the current forward in the trace has met it."""
    runs = _traces[token].present()
    _traces[token].met.add(layer)
    runs[layer] += 1
    return runs[layer]


def met_in_traces(token: str, layer: str) -> bool:
    return layer in _traces[token].met


def allow_graphs(count: int) -> None:
    """Lets Dynamo compile this many graphs of one root, beside its usual limit for other causes."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, count + _DYNAMOS_LIMIT)


def mark_batch(tensors: Iterable[Tensor], batch: int, dim: int) -> None:
    """Makes the batch dimension symbolic from the first graph on, so that no size recompiles.

    Otherwise the graph of each layer would be compiled twice: once for the first batch size.
    torch._dynamo.mark_static has precedence.
    """
    for t in tensors:
        if -t.ndim <= dim < t.ndim and t.shape[dim] == batch:
            torch._dynamo.maybe_mark_dynamic(t, dim % t.ndim)


def recorded() -> bool:
    """True under torch.export, torch.jit.trace or make_fx, whose graphs would repeat one draw."""
    if torch.compiler.is_compiling():
        return is_exporting()
    proxy = torch._C._TorchDispatchModeKey.PROXY
    return torch._C._is_tracing() or torch._C._get_dispatch_mode(proxy) is not None


def is_exporting() -> bool:
    # Called at trace time: Dynamo of torch 2.11 takes PyTorch's function for True without a call.
    return torch.compiler.is_exporting()


_AT_TRACE_TIME = (forward_in_trace, forwards_so_far, runs_in_trace, met_in_traces, is_exporting)
