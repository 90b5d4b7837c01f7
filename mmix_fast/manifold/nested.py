"""Finds and replaces tensors in nested tuples, lists, mappings and dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..sampling import Mix


def tensors(value: Any) -> list[Tensor]:
    """Every tensor inside, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [t for part in _parts(value) for t in tensors(part)]


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, tuple | list):
        return list(value)
    if _is_record(value):
        return [getattr(value, f.name) for f in dataclasses.fields(value)]
    return []


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def listed(value: Any) -> list[Tensor]:
    """Tensors inside lists and plain tuples (not namedtuples), which may be lists of samples."""
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return tensors(value)
    return [t for part in _parts(value) for t in listed(part)]


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same structure, of the same types, with each tensor replaced by ``function`` of it."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (tuple, list):
        return type(value)([map_tensors(function, part) for part in value])
    if isinstance(value, tuple):
        parts = [map_tensors(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict) and type(value) is dict:
        return {key: map_tensors(function, part) for key, part in value.items()}
    if isinstance(value, list | MutableMapping):
        new = copy.copy(value)  # keeps other attributes of a subclass
        for key in range(len(value)) if isinstance(value, list) else list(value):
            new[key] = map_tensors(function, value[key])
        return new
    if _is_record(value):
        new = copy.copy(value)
        for f in dataclasses.fields(value):  # setattr would fail for a frozen one
            object.__setattr__(new, f.name, map_tensors(function, getattr(value, f.name)))
        return new
    return value


def unreachable(value: Any) -> str | None:
    """Type name of an inner object whose tensors map_tensors cannot reach; None if none exist."""
    if isinstance(value, Tensor) or value is None:
        return None
    if isinstance(value, PackedSequence):  # a tuple, but dimension 0 is not the batch
        return type(value).__name__
    if isinstance(value, tuple | list | MutableMapping) or _is_record(value):
        return next(filter(None, map(unreachable, _parts(value))), None)
    if isinstance(value, Iterator):
        return type(value).__name__  # reading it would empty it
    if isinstance(value, set | frozenset | deque | Mapping):
        inside = list(value.values() if isinstance(value, Mapping) else value)
    elif isinstance(value, nn.Module | type):
        return None
    else:
        inside = list(getattr(value, "__dict__", {}).values())
        slots = getattr(type(value), "__slots__", ())
        inside += [
            getattr(value, name, None) for name in ([slots] if isinstance(slots, str) else slots)
        ]
    return type(value).__name__ if tensors(inside) else None


def mixable(t: Tensor, batch: int, dim: int) -> bool:
    if t.is_nested:  # it has no regular shape; mix_tensors raises
        return True
    return (
        (t.is_floating_point() or t.is_complex())
        and -t.ndim <= dim < t.ndim
        and t.shape[dim] == batch
    )


def mix_tensors(value: Any, mix: Mix, dim: int, inplace: bool) -> Any:
    """Mixes every floating tensor with the batch size at ``dim``; None if there is none.

    A tensor that appears twice is mixed once. In place, two different views of one storage raise:
    their common elements would be mixed twice.
    """
    batch = mix.perm.shape[0]
    done: list[tuple[Tensor, Tensor]] = []

    def one(t: Tensor) -> Tensor:
        if not mixable(t, batch, dim):
            return t
        for before, after in done:
            if before is t:
                return after
            if inplace and before.untyped_storage().data_ptr() == t.untyped_storage().data_ptr():
                raise RuntimeError(
                    "inplace=True cannot mix a layer that returns two views of one memory, "
                    f"of shapes {tuple(before.shape)} and {tuple(t.shape)}; use inplace='auto'"
                )
        if t.is_complex() or t.is_nested or t.layout != torch.strided:
            layout = str(t.layout).removeprefix("torch.")
            kind = "nested" if t.is_nested else "complex" if t.is_complex() else layout
            raise ValueError(f"cannot mix a {kind} tensor; mix at another layer")
        own = mix.to(t.device)
        done.append((t, own.mix_(t, dim=dim) if inplace else own.mix(t, dim=dim)))
        return done[-1][1]

    new = map_tensors(one, value)
    return new if done else None
