"""Finds the forward that made given logits, and the forward that a checkpoint recomputes.

Each forward writes its record into ``grad_fn.metadata`` of its outputs and of the layers that may
mix; autograd frees it with the graph. It also notes the storages of its outputs. Both can be looked
up in any order, from any thread, and after other forwards.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .draws import Draw

# Number of forwards without grad mode that are kept, for reentrant checkpoints around the whole
# model: this many can be in flight before their backward. Each keeps 8 bytes per sample.
KEPT = 64


@dataclass(eq=False)
class Forward:
    """One forward of the root. Its autograd nodes have sequence numbers in [start, end)."""

    draw: Draw | None  # None: it mixed nothing
    start: int = 0
    end: int | None = None  # None while it runs
    ran: bool = False  # whether the drawn layer has run


def in_backward() -> bool:
    """True inside the autograd engine, where activation checkpointing recomputes a forward."""
    return torch._C._current_graph_task_id() != -1


class Forwards:
    """The forwards of one ManifoldMixup that logits or a recomputation may still need."""

    def __init__(self) -> None:
        self._key = object()  # our key in a node's metadata
        self._alive: WeakSet[Forward] = WeakSet()  # those that a graph or a storage note refers to
        self._without_graph: deque[Forward] = deque(maxlen=KEPT)
        self._storages: dict[int, tuple[StorageWeakRef, Forward | None]] = {}
        self._prune_at = 16
        self._threads: set[int] = set()  # that ran forwards; sequence numbers count per thread
        self._lock = threading.Lock()  # no set or dict may grow while another thread iterates it

    def start(self, draw: Draw | None) -> Forward:
        # A reentrant checkpoint of the whole model creates its node first, then runs the model
        # without grad mode: its node has the number before this one.
        grad_mode = torch.is_grad_enabled()
        forward = Forward(draw, torch.autograd._get_sequence_nr() - (not grad_mode))
        with self._lock:
            self._alive.add(forward)
            self._threads.add(threading.get_ident())
            if not grad_mode:
                self._without_graph.append(forward)
        return forward

    def tag(self, forward: Forward, tensors: Iterable[Tensor]) -> None:
        """Writes the forward into the tensors' grad_fn, except nodes older than the forward."""
        for t in tensors:
            node = t.grad_fn
            if node is not None and node._sequence_nr() >= forward.start:
                _metadata(node).setdefault(self._key, forward)

    def finish(self, forward: Forward, outputs: Iterable[Tensor]) -> None:
        outputs = list(outputs)
        forward.end = torch.autograd._get_sequence_nr()
        self.tag(forward, outputs)
        with self._lock:
            self._note_storages(forward, outputs)

    def _note_storages(self, forward: Forward, outputs: list[Tensor]) -> None:
        if len(self._storages) >= self._prune_at:
            for gone in [a for a, (ref, _) in self._storages.items() if ref.expired()]:
                del self._storages[gone]
            self._prune_at = 2 * len(self._storages) + 16
        for t in outputs:
            address = _storage(t)
            if address is None:
                continue
            # No other storage can get this address while the weak reference exists.
            known = self._storages.get(address)
            if known is None or known[0].expired():
                self._storages[address] = StorageWeakRef(t.untyped_storage()), forward
            elif known[1] is not forward:  # returned by two forwards (passed through): ambiguous
                self._storages[address] = known[0], None

    def that_made(self, logits: Tensor) -> Forward | None:
        """None if it is unknown. RuntimeError if the logits come from several forwards."""
        address = _storage(logits)
        known = None if address is None else self._storages.get(address)
        if known is not None and known[1] is not None:
            return known[1]
        found = self._behind(logits.grad_fn)
        if len(found) > 1:
            raise RuntimeError(
                f"logits must come from one forward of the model, got {len(found)} joined; call "
                "loss or accuracy with the logits of each forward"
            )
        return next(iter(found), None)

    def recomputed(self) -> Forward | None:
        """The forward that is being recomputed inside backward; None if it is not one of ours."""
        node = torch._C._current_autograd_node()
        number = -1 if node is None else node._sequence_nr()
        with self._lock:
            alive = list(self._alive)
        near = {f for f in alive if f.start <= number and (f.end is None or number < f.end)}
        if len(near) == 1 and len(self._threads) == 1:
            return next(iter(near))
        kept = self._without_graph
        if not near and len(kept) == KEPT and number < kept[0].start:
            raise RuntimeError(
                f"more than {KEPT} forwards lie between a checkpointed one and its backward"
            )
        if not near:
            return None
        # Forwards of several threads can have the same numbers: the graph behind the node decides.
        found = self._behind(node) & near
        if len(found) == 1:
            return found.pop()
        raise RuntimeError(
            "cannot tell which forward a checkpoint recomputes, since forwards ran in several "
            "threads; use checkpoint(..., use_reentrant=False), or one thread"
        )

    def _behind(self, node: torch.autograd.graph.Node | None) -> set[Forward]:
        """The first forward on each path from a node toward the leaves."""
        found: set[Forward] = set()
        todo = [] if node is None else [node]
        seen = set(todo)
        while todo:
            at = todo.pop()
            forward = _metadata(at).get(self._key)
            if forward is not None:
                found.add(forward)
                continue
            following = {n for n, _ in at.next_functions if n is not None} - seen
            seen |= following
            todo += following
        return found


def _metadata(node: Any) -> dict[Any, Any]:
    return node.metadata  # torch's stubs call this dictionary a method


def _storage(t: Tensor) -> int | None:
    try:
        return t.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # torch.func's and sparse tensors have none
        return None
