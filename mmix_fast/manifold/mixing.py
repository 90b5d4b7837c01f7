"""The hooks of a ManifoldMixup: each forward of the root makes a draw, and one layer mixes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from ..sampling import draw_mix
from ..tracing import vmapped
from . import draws, messages, nested
from .batch import Layer, size_and_device
from .draws import Draw
from .forwards import Forward, Forwards, in_backward
from .hooks import Hook, RootHook, add_forward, remove_forward
from .inplace import may_overwrite
from .traces import (
    Traces,
    allow_graphs,
    forward_in_trace,
    forwards_so_far,
    mark_batch,
    met_in_traces,
    recorded,
    running,
    runs_in_trace,
)


class Mixing:
    """Installs the hooks, tracks the running forward, and finds the forward that made given logits.

    In eager mode each forward has a record (:class:`Forward`), found through the autograd graph.
    While torch.compile traces, there are no autograd nodes: the draw is kept as an attribute, and
    the first eager call after the graph tags the outputs (:meth:`_settle`).

    ``options``: the ManifoldMixup, whose alpha, prob, enabled may change between forwards.
    """

    def __init__(self, options: Any, root: nn.Module, layers: Sequence[Layer]) -> None:
        self.options, self.root, self.layers = options, root, layers
        self.last: Draw | None = None  # of the last forward
        self._last_forward: Forward | None = None
        self._claimed = False  # True if the last logits looked up are the last forward's
        self._count = 0  # number of forwards; a traced one sets it to 2, which only means "some"
        self._forwards, self._traces = Forwards(), Traces()
        self._live: dict[int, Forward] = {}  # the running forward of each thread
        # (output, draw) of compiled forwards, until an eager call tags them.
        self._traced: tuple[tuple[Any, Draw | None], ...] = ()
        self._closed = False
        self._draw_outside = torch.compiler.disable(self._draw_of, reason=messages.LOSS_ALONE)
        self._input = next((n for n, layer in enumerate(layers) if layer.is_input), None)
        allow_graphs(len(layers) + 1)
        add_forward(root)
        self._handles = [
            root.register_forward_pre_hook(
                RootHook(self._before, self._before_graph), with_kwargs=True
            ),
            # Also after an exception in the model, so that no draw stays active.
            root.register_forward_hook(RootHook(self._after, self._after), always_call=True),
        ]
        for number, layer in enumerate(layers):
            if not layer.is_input:
                hook = Hook(partial(self._at, number))
                self._handles.append(layer.module.register_forward_hook(hook))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        remove_forward(self.root)
        self._closed = True

    def is_on(self) -> bool:
        """True if forwards mix, each with probability ``prob``."""
        return not self._closed and self.options.enabled and self.root.training

    @property
    def last_layer(self) -> str | None:
        number = -1 if self.last is None else int(self.last.layer)
        return None if number < 0 else self.layers[number].name

    # Finding the draw of given logits.

    def draw_of(self, logits: Tensor) -> Draw | None:
        """The draw of the forward that made the logits; None if it mixed nothing."""
        if not torch.compiler.is_compiling():
            return self._draw_of(logits)
        if forwards := forwards_so_far(self._traces.token):
            return self._draw_in_trace(logits, forwards)
        return self._draw_outside(logits)  # the model ran outside of this graph

    def _draw_of(self, logits: Tensor) -> Draw | None:
        self._settle()
        last, forward = self._last_forward, self._forwards.that_made(logits)
        if forward is not None:
            self._claimed = forward is last
            return forward.draw
        if not self.is_on():
            return None
        # Logits without a graph are taken as the last forward's only if it is the only forward, or
        # if the last logits looked up were its own.
        if logits.grad_fn is None and last is not None and (self._claimed or self._count == 1):
            return last.draw
        raise RuntimeError(messages.unknown_logits(logits, self._count))

    def _draw_in_trace(self, logits: Tensor, forwards: int) -> Draw | None:
        self._claimed = forwards == 1
        if forwards == 1:
            (_, draw), *_ = self._traced
            self._traced = (((), draw),)  # no output, so that the graph need not return it for us
            return draw
        for output, draw in self._traced:
            if any(t is logits for t in nested.tensors(output)):
                return draw
        raise RuntimeError(messages.SEVERAL_IN_A_GRAPH)

    def _settle(self) -> None:
        """Tags the outputs of compiled forwards; they have autograd nodes only after the graph."""
        traced, self._traced = self._traced, ()
        for output, draw in traced:
            self._last_forward = Forward(draw)
            self._forwards.finish(self._last_forward, nested.tensors(output))

    # Before the root: make a draw.

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self._before_in_trace(module, args, kwargs)
        if in_backward():
            forward = self._forwards.recomputed()
            running[self._traces.token].draw = None if forward is None else forward.draw
        else:
            self._settle()
            self._live.pop(get_ident(), None)  # left by an interrupted forward
            draw = self._draw(args, kwargs) if self.is_on() else None
            forward = self._forwards.start(draw)
            self._live[get_ident()] = self._last_forward = forward
            running[self._traces.token].draw = self.last = draw  # also for compiled layers
            self._claimed = False
            self._count += 1
        if forward is None:
            return None
        new = self._mix_input(forward.draw, args, kwargs)
        forward.ran = new is not None
        return new

    def _before_graph(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """As :meth:`_before`, where the root's forward is a graph: one for each layer drawn."""
        new = self._before(module, args, kwargs)
        if self.is_on():
            args, kwargs = new or (args, kwargs)
            inputs = (*args, *kwargs.values())
            batch, _ = size_and_device(self.root, inputs, self.options.dim, False)
            mark_batch(nested.tensors(inputs), batch, self.options.dim)
            if (draw := running[self._traces.token].draw) is not None:
                mark_batch([draw.mix.perm, draw.mix.lam], batch, 0)
        return new

    def _before_in_trace(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        forward_in_trace(self._traces.token)
        draw = self._draw(args, kwargs) if self.is_on() else None
        running[self._traces.token].draw = self.last = draw
        self._count = 2
        if draw is None or self._input is None:
            return None
        runs_in_trace(self._traces.token, self.layers[self._input].name)
        return self._mix_input(draw, args, kwargs)

    def _mix_input(self, draw: Draw | None, args: Any, kwargs: Any) -> Any:
        mix = None if draw is None else draw.at(self._input)
        if mix is None or self._input is None:
            return None
        # Never in place: these are the caller's tensors.
        return self.layers[self._input].mixed((args, kwargs), mix, self.options.dim, False)

    def _draw(self, args: Any, kwargs: Any) -> Draw | None:
        o, count = self.options, len(self.layers)
        if recorded():
            raise RuntimeError(messages.TRACED)
        if vmapped():
            raise RuntimeError(messages.VMAP)
        batch, device = size_and_device(
            self.root, (*args, *kwargs.values()), o.dim, self._input is not None
        )
        if not torch.compiler.is_compiling():
            sample = partial(o._sample, batch, o.alpha, device=device)
            return draws.on_host(sample, count, o.prob, o.generator)
        if o.generator is not None:
            raise RuntimeError("generator= cannot be used in a compiled graph; pass None there")
        # alpha and prob as tensors: as numbers, each value would compile a new graph.
        mix = draw_mix(batch, o._alpha_tensor, device, o.per_sample, o.pairing)
        return draws.in_graph(mix, count, o._prob_tensor)

    # After the root: clear the running draw, and check that the drawn layer ran.

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            draw = running[self._traces.token].stop()
            first = forwards_so_far(self._traces.token) <= 1
            self._traced = (*(() if first else self._traced), (output, draw))
            return self._check_run_in_trace(draw)
        if in_backward():
            running[self._traces.token].stop()
            return None
        forward = self._live.pop(get_ident(), None)
        draw = running[self._traces.token].stop()
        if output is None:  # the model raised an exception
            return None
        if forward is None:  # this forward began inside a graph, which then broke
            forward = self._last_forward = Forward(draw)
        self._forwards.finish(forward, nested.tensors(output))
        if forward.ran:
            return None
        if draw is not forward.draw:
            raise RuntimeError(messages.THREADS_AND_GRAPHS)
        return self._check_run_in_trace(draw)

    def _check_run_in_trace(self, draw: Draw | None) -> None:
        if draw is None:
            return
        drawn = self.layers if isinstance(draw.layer, Tensor) else [self.layers[draw.layer]]
        for layer in drawn:
            if not met_in_traces(self._traces.token, layer.name):
                raise RuntimeError(messages.did_not_run(layer.name, layer.module))

    # After a layer: mix its output if it is the drawn layer.

    def _at(self, number: int, module: nn.Module, args: Any, output: Any) -> Any:
        if torch.compiler.is_compiling():
            return self._at_in_trace(number, output)
        layer, again = self.layers[number], in_backward()
        if again:
            forward = self._forwards.recomputed()
        else:
            # In eval() a record can only come from an interrupted forward.
            forward = self._live.get(get_ident()) if self.root.training else None
        if forward is None:
            return None
        new, mix = None, None if forward.draw is None else forward.draw.at(number)
        if mix is not None:
            if forward.ran and not again:
                raise RuntimeError(messages.ran_twice(layer.name))
            forward.ran = True
            wish = self.options.inplace
            inplace = may_overwrite(module, output) if wish == "auto" else bool(wish)
            new = layer.mixed(output, mix, self.options.dim, inplace)
        # A checkpoint around the layer finds the forward by this tag when it recomputes.
        self._forwards.tag(forward, nested.tensors(output if new is None else new))
        return new

    def _at_in_trace(self, number: int, output: Any) -> Any:
        draw = running[self._traces.token].draw
        mix = None if draw is None else draw.at(number)
        if mix is None:
            return None
        layer = self.layers[number]
        if runs_in_trace(self._traces.token, layer.name) > 1:
            raise RuntimeError(messages.ran_twice(layer.name))
        # A graph's buffers are the compiler's: it needs no copy, and may be traced where we raise.
        return layer.mixed(output, mix, self.options.dim, False)
