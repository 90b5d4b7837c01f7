"""Resolves layer names to modules, and picks the layers for ``layers="auto"``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from difflib import get_close_matches

from torch import nn

from ..validation import describe

AUTO_DEPTH = 2  # the paper's CIFAR set {0, 1, 2}: the input and the ends of the first two stages
_WRAPPERS = ("module", "_orig_mod")  # of DistributedDataParallel and torch.compile
_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
# A norm may hold its activation (timm's BatchNormAct2d), and still is no stage.
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def bare(name: str) -> str:
    """A module's name without the parts that DDP and torch.compile add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def resolve(model: nn.Module, layers: Iterable[str]) -> list[tuple[str, nn.Module]]:
    """Each name as given, with its module. An exact name wins over one that differs in wrappers."""
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise TypeError(f"layers must be a list of names or 'auto', got {describe(layers)}")
    exact = dict(model.named_modules(remove_duplicate=False))
    stripped: dict[str, list[nn.Module]] = defaultdict(list)
    for name, module in exact.items():
        stripped[bare(name)].append(module)
    found: list[tuple[str, nn.Module]] = []
    for name in layers:
        if not isinstance(name, str):
            raise TypeError(f"layers must hold names of modules, got {describe(name)}")
        if name in exact:
            module = exact[name]
        elif len(candidates := set(stripped[bare(name)])) == 1:
            (module,) = candidates
        elif candidates:
            raise ValueError(f"layers names {name!r}, which fits {len(candidates)} modules")
        else:
            raise ValueError(_unknown(name, exact))
        for other, taken in found:
            if taken is module:
                raise ValueError(f"layers names one module twice: {other!r} and {name!r}")
        found.append((name, module))
    if not found:
        raise ValueError("layers must name at least one module ('' is the model's input), got none")
    return found


def _unknown(name: str, known: Iterable[str]) -> str:
    names = {bare(k): k for k in known if k}
    near = get_close_matches(bare(name), names, n=4, cutoff=0.5) or list(names)[:8]
    shown = ", ".join(repr(names[n]) for n in near)
    return f"layers must be names of model.named_modules(), got {name!r}; near names: {shown}"


def auto(model: nn.Module) -> list[str]:
    """The input and the ends of the first stages, found by the names and classes of modules.

    Stages are sibling modules whose names differ only in a number (``layer1``, ``layer2``;
    ``blocks.0``, ``blocks.1``); the outermost such list is used. If there is none, the weighted
    layers of a plain chain are used, in a Sequential each with the activation after it. The last
    layer of a chain is never picked, nor the last stage of a model that is a Sequential of stages:
    mixing there would mix the logits. The search does not enter a block (a module with a linear or
    convolution layer among its children), so it picks nothing inside a skip connection. A skip
    around whole stages, as in a U-Net, does not show in the names: give the layers yourself there.
    """
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner  # DistributedDataParallel
    queue = [("", model)]
    for prefix, module in queue:
        children = list(module.named_children())
        if module is model or not any(isinstance(m, _WEIGHTED) for _, m in children):
            queue += [(_join(prefix, name), m) for name, m in children if any(m.children())]
    found = [_stages(*place) for place in queue] + [_chain(*place, model) for place in queue]
    ends = next(filter(None, found), [])
    return [_input(model), *ends[:AUTO_DEPTH]]


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _stages(prefix: str, module: nn.Module) -> list[str]:
    groups: dict[str, list[str]] = defaultdict(list)
    children = list(module.named_children())
    for name, child in children:
        if any(child.children()) and not isinstance(child, _NORMS):
            groups[re.sub(r"\d+", "#", name)].append(name)
    stages = next((names for names in groups.values() if len(names) > 1), [])
    if stages and isinstance(module, nn.Sequential) and stages[-1] == children[-1][0]:
        last_is_output = not prefix  # if the whole model is this chain, it ends in the logits
    else:
        last_is_output = False
    return [_join(prefix, name) for name in (stages[:-1] if last_is_output else stages)]


def _chain(prefix: str, module: nn.Module, model: nn.Module) -> list[str]:
    """Picks from a plain chain: in a Sequential, the module before each weighted one but the first.

    In a model that is no Sequential: each weighted module but the last.
    """
    children = list(module.named_children())
    weighted = [i for i, (_, child) in enumerate(children) if isinstance(child, _WEIGHTED)]
    if isinstance(module, nn.Sequential):
        ends = [i - 1 for i in weighted[1:]]
    elif module is model:
        ends = weighted[:-1]
    else:
        ends = []
    return [_join(prefix, children[i][0]) for i in ends]


def _input(model: nn.Module) -> str:
    """The first embedding if it comes before any other weighted layer, else ""."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            return name
        if isinstance(module, _WEIGHTED):
            break
    return ""


def first_embedding(model: nn.Module) -> str | None:
    names = (n for n, m in model.named_modules() if isinstance(m, nn.Embedding))
    return next(names, None)
