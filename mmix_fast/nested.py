"""Tensors inside what a module takes or returns: tuples, lists, mappings, nested."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from torch import Tensor

from .sampling import Mix


def tensors(value: Any) -> list[Tensor]:
    """Every tensor inside, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [t for part in value for t in tensors(part)]
    return []


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
        new = copy.copy(value)  # keeps what a subclass holds besides its items
        for key in range(len(value)) if isinstance(value, list) else list(value):
            new[key] = map_tensors(function, value[key])
        return new
    return value


def mixable(t: Tensor, batch: int, dim: int) -> bool:
    return t.is_floating_point() and -t.ndim <= dim < t.ndim and t.shape[dim] == batch


def mix_tensors(value: Any, mix: Mix, dim: int, inplace: bool) -> Any:
    """Mixes every floating tensor with the batch size at ``dim``; None where there is none.

    A tensor that appears twice is mixed once. In place, two different views of one memory raise:
    mixing both would mix what they share twice.
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
        own = mix.to(t.device)
        done.append((t, own.mix_(t, dim=dim) if inplace else own.mix(t, dim=dim)))
        return done[-1][1]

    new = map_tensors(one, value)
    return new if done else None
