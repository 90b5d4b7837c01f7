"""Finds the batch in the arguments of a model and in the output of a layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..sampling import Mix
from ..validation import describe
from . import messages, nested
from .layers import first_embedding


def size_and_device(
    root: nn.Module, arguments: tuple[Any, ...], dim: int, mixes_input: bool
) -> tuple[int, torch.device]:
    """Size and device of the batch, read from the first tensor of the model's arguments."""
    found = nested.tensors(arguments)
    if not found:
        raise ValueError("the model must be called with a tensor to be mixed, got none")
    first = found[0]
    if any(t is first for argument in arguments for t in nested.listed(argument)):
        raise ValueError(messages.listed(first))
    if mixes_input and not first.is_floating_point():
        raise TypeError(messages.integers(first, first_embedding(root)))
    if not -first.ndim <= dim < first.ndim:
        raise ValueError(
            f"the model's first tensor must have its batch at dim={dim}, got {describe(first)}"
        )
    return first.shape[dim], first.device


@dataclass
class Layer:
    """One of ``layers``: its name as given, and how its output is mixed."""

    name: str
    module: nn.Module
    is_input: bool  # the layer "": the model's arguments are mixed, not its output
    states: frozenset[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.states = frozenset() if self.is_input else _states_inside(self.module)

    def mixed(self, value: Any, mix: Mix, dim: int, inplace: bool) -> Any:
        batch = mix.perm.shape[0]
        if not isinstance(value, Tensor) and (hidden := nested.unreachable(value)):
            raise ValueError(messages.unreachable(self.name, hidden))
        if self.is_input:
            arguments, keywords = value
            for argument in (*arguments, *keywords.values()):
                for t in nested.listed(argument):
                    if nested.mixable(t, batch, dim):
                        raise ValueError(messages.listed(t))
            new = nested.mix_tensors(value, mix, dim, inplace)
        elif type(value) is tuple and (pair := _dims_of_pair(self.module)):
            dim = pair[0]
            new = _mix_pair(value, mix, pair, inplace)
        else:
            dim = _own_dim(self.module, dim)
            odd = _misplaced(nested.tensors(value), batch, dim, self.states)
            if odd is not None:
                raise ValueError(messages.misplaced(self.name, odd, batch, dim))
            new = nested.mix_tensors(value, mix, dim, inplace)
        if new is None:
            raise ValueError(messages.no_batch(self.name, value, batch, dim))
        return new


def _mix_pair(value: Any, mix: Mix, dims: tuple[int, int], inplace: bool) -> Any:
    output, rest = value
    if output.ndim != 3:  # unbatched
        return None
    new = nested.mix_tensors(output, mix, dims[0], inplace)
    if not nested.tensors(rest):
        return None if new is None else (new, rest)
    new_rest = nested.mix_tensors(rest, mix, dims[1], inplace)
    return None if new is None or new_rest is None else (new, new_rest)


def _dims_of_pair(module: nn.Module) -> tuple[int, int] | None:
    """The batch dimensions of the pair that torch's RNN or attention layer returns, else None."""
    if isinstance(module, nn.RNNBase):  # output, state
        return (0 if module.batch_first else 1), 1
    if isinstance(module, nn.MultiheadAttention):  # output, weights
        return (0 if module.batch_first else 1), 0
    return None


def _own_dim(module: nn.Module, dim: int) -> int:
    """``dim``; for torch's transformer layers, the dimension that ``batch_first`` gives."""
    if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder):
        module = module.layers[0]
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        module = module.self_attn
    if isinstance(module, nn.MultiheadAttention | nn.Transformer):
        return 0 if module.batch_first else 1
    return dim


def _states_inside(module: nn.Module) -> frozenset[tuple[int, int]]:
    """(layers, width) of the states ``(layers, batch, width)`` of all RNN layers in ``module``."""
    found = set()
    for inner in module.modules():
        if isinstance(inner, nn.RNNBase):
            layers = inner.num_layers * (2 if inner.bidirectional else 1)
            found |= {(layers, inner.hidden_size), (layers, inner.proj_size or inner.hidden_size)}
    return frozenset(found)


def _misplaced(
    outputs: Iterable[Tensor], batch: int, dim: int, states: frozenset[tuple[int, int]]
) -> Tensor | None:
    """The first tensor whose batch is at 1 (at 0 for dim=1), like the state of an RNN; or None."""
    if dim not in (0, 1):
        return None
    for t in outputs:
        if t.is_nested or t.ndim != 3 or not t.is_floating_point():
            continue
        if t.shape[1 - dim] != batch:
            continue
        if dim == 0 and (t.shape[0], t.shape[2]) in states:
            return t
        # With a grad_fn it was computed from the batch; a position table (1, length, width) is not.
        if t.shape[dim] != batch and not torch.compiler.is_compiling() and t.grad_fn is not None:
            return t
    return None
