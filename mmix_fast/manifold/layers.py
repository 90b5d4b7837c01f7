"""Names to modules, and the choice of ``layers="auto"``."""

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


def bare(name: str) -> str:
    """A module's name without what DDP and torch.compile put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def resolve(model: nn.Module, layers: Iterable[str]) -> list[tuple[str, nn.Module]]:
    """Each name, as given, with its module; exact names win over such that differ in wrappers."""
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
    """The input, and the ends of the first stages, found from the names and classes of the modules.

    Stages are modules that differ in a number only (``layer1``, ``layer2``; ``blocks.0``,
    ``blocks.1``), the outermost such list; without any, the layers with weights of a plain chain,
    each with the activation that follows it. The last is never taken: mixing there mixes the
    logits. The search stops at a block (a module with weights of its own beside its children), so
    that nothing inside a skip connection is found; a skip around whole stages, as in a U-Net, shows
    in no name: give the layers yourself there.
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
        if any(child.children()):
            groups[re.sub(r"\d+", "#", name)].append(name)
    stages = next((names for names in groups.values() if len(names) > 1), [])
    if stages and isinstance(module, nn.Sequential) and stages[-1] == children[-1][0]:
        last_is_output = not prefix  # a chain that is the whole model ends in its logits
    else:
        last_is_output = False
    return [_join(prefix, name) for name in (stages[:-1] if last_is_output else stages)]


def _chain(prefix: str, module: nn.Module, model: nn.Module) -> list[str]:
    """For leaves in a row: in a Sequential the module before each weighted one but the first."""
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
    """ "", or the first embedding where the model reads integers."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            return name
        if isinstance(module, _WEIGHTED):
            break
    return ""


def first_embedding(model: nn.Module) -> str | None:
    names = (n for n, m in model.named_modules() if isinstance(m, nn.Embedding))
    return next(names, None)
