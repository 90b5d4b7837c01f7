"""Error messages of ManifoldMixup: each names the cause and what to do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..validation import describe
from . import nested

TRACED = (
    "ManifoldMixup cannot be exported or traced in training: call eval() on the model, set "
    "enabled = False, or close() it first"
)
VMAP = (
    "ManifoldMixup cannot draw inside torch.func.vmap, where every sample is a batch of its own: "
    "set enabled = False, or call eval() on the model"
)
LOSS_ALONE = "ManifoldMixup.loss finds the forward by the logits' autograd graph, in eager mode"
SEVERAL_IN_A_GRAPH = (
    "logits must be the very output of the model where a graph holds several forwards of it; call "
    "loss before the next forward, or outside of the graph"
)
THREADS_AND_GRAPHS = (
    "two threads ran the model at once, and its compiled layers cannot tell their draws apart; run "
    "compiled models with ManifoldMixup in one thread at a time"
)
_SKIPPED = "model.forward(x) was called, which skips hooks (call model(x))"
_OTHER_GRAPH = (
    "a graph that torch.compile made for another model of the same class, before this one was "
    "given to ManifoldMixup, is used for both and calls no hooks: call torch.compiler.reset() "
    "after ManifoldMixup(...) and before the first call of the compiled model, or set "
    "torch._dynamo.config.skip_nnmodule_hook_guards = False at the start"
)


def second(first: Any) -> str:
    return (
        f"the model must have one ManifoldMixup at a time, and {first!r} is open on it, or on a "
        "part or a wrapper of it; call close() on that one first"
    )


def unknown_logits(logits: Tensor, forwards: int) -> str:
    if not forwards:
        reason = f"{_SKIPPED}, or {_OTHER_GRAPH}" if _something_compiled() else _SKIPPED
        return f"loss and accuracy in training need a forward of the model first ({reason})"
    if logits.grad_fn is None:
        return (
            "cannot tell which forward made these logits: they have no autograd graph and are not "
            "the model's output itself; pass that output, or call mixup.mix.cross_entropy or "
            "mixup.mix.accuracy right after the forward"
        )
    causes = [
        _SKIPPED,
        "another model made them",
        "a later compiled forward ran before loss",
        "they came out of a compiled step that holds loss itself (call accuracy there too)",
    ]
    if _something_compiled():
        causes.append(_OTHER_GRAPH)
    return f"no forward that ManifoldMixup saw made these logits: {'; or '.join(causes)}"


def ran_twice(name: str) -> str:
    return f"the layer {name!r} ran twice in one forward of the model; mix one that runs once"


def did_not_run(name: str, layer: nn.Module) -> str:
    parts = [n for n, _ in layer.named_children()]
    cures = ""
    if parts:
        cures += (
            "; where its parts are called without it (timm's set_grad_checkpointing does so), name "
            f"the last part, {f'{name}.{parts[-1]}'!r}"
        )
    if _something_compiled():
        cures += f"; or {_OTHER_GRAPH}"
    return f"the layer {name!r} did not run in the forward of the model{cures}"


def _something_compiled() -> bool:
    # Code under trace sees its own copy of the counters, so is_compiling is checked too.
    return torch.compiler.is_compiling() or bool(torch._dynamo.utils.counters["stats"])


def integers(first: Tensor, embedding: str | None) -> str:
    if embedding is None:
        cure = "convert it to float before the model, or mix at a hidden layer"
    else:
        cure = f"mix at the embedding instead: layers=[{embedding!r}]"
    return f"the input must be floating to be mixed (layer ''), got {describe(first)}; {cure}"


def listed(first: Tensor) -> str:
    return (
        "the model must get a batch as one tensor to be mixed, got a list or tuple that holds "
        f"{describe(first)} and may be a batch of samples; stack them, or pass tensors of a whole "
        "batch as arguments of their own, or in a dict"
    )


def unreachable(name: str, kind: str) -> str:
    return (
        f"the layer {name!r} must give tensors in tuples, lists, dicts or dataclasses, got a "
        f"{kind}, whose tensors cannot be mixed; mix at another layer"
    )


def misplaced(name: str, odd: Tensor, batch: int, dim: int) -> str:
    return (
        f"the layer {name!r} must give its batch of {batch} at dim={dim}, got {describe(odd)}, "
        f"which seems to have it at dim={1 - dim} (the state of a recurrent layer has); mix at "
        "another layer, or at the recurrent layer itself"
    )


def no_batch(name: str, value: Any, batch: int, dim: int) -> str:
    shapes = "; ".join(_shape(t) for t in nested.tensors(value)) or "no tensor"
    return (
        f"the layer {name!r} must give a floating tensor with the batch size {batch} at dim={dim}, "
        f"got {shapes}"
    )


def _shape(t: Tensor) -> str:
    # A symbolic size has no text: Dynamo would show another error instead of the message.
    return f"{t.ndim} dimensions" if torch.compiler.is_compiling() else describe(t)
