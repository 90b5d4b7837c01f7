"""The public names of mmix_fast, and what their docstrings say of their arguments."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import mmix_fast
from benchmarks.torchvision_ops import declare_missing

PACKAGE = Path(mmix_fast.__file__).parent
LIBRARIES = {
    "lightning": "pytorch_lightning",
    "torchmetrics": "torchmetrics",
    "torchvision": "torchvision",
    "transformers": "transformers",
}


def _names_of(path):
    """The public functions and classes of a module, and what it imports to offer it.

    Read, not imported: the library that it needs may be absent.
    """
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.asname for alias in node.names if alias.asname == alias.name)


INTEGRATIONS = {
    path.stem: list(_names_of(path))
    for path in sorted((PACKAGE / "integrations").glob("*.py"))
    if path.stem not in ("__init__", "timm_losses")  # timm offers these losses
}
MODULES = [
    "mmix_fast",
    "mmix_fast.reference",
    "mmix_fast.distributed",
    *(f"mmix_fast.integrations.{module}" for module in INTEGRATIONS),
]
NAMES = [
    *(f"mmix_fast.{name}" for name in mmix_fast.__all__ if name != "reference"),
    "mmix_fast.dispatch.Status",  # what backends() returns
    *(f"mmix_fast.distributed.{n}" for n in _names_of(PACKAGE / "distributed/__init__.py")),
    *(f"mmix_fast.integrations.{m}.{n}" for m, names in INTEGRATIONS.items() for n in names),
]


def load(name):
    """The module, function or class of this name; skips where the library it needs is absent."""
    module = name if name in MODULES else name.rpartition(".")[0]
    if library := LIBRARIES.get(module.rpartition(".")[2]):
        declare_missing()  # the other libraries import torchvision where they find it
        pytest.importorskip(library)
    found = importlib.import_module(module)
    return found if name == module else getattr(found, name.rpartition(".")[2])


def parameters(function):
    """The parameters of a function, or of a class' own __init__, without self."""
    made = function.__init__ if inspect.isclass(function) else function
    if made.__module__.startswith("torch"):  # nn.Module's
        return []
    return [p for p in inspect.signature(made).parameters.values() if p.name != "self"]


def section(doc, title):
    """A section of a docstring, such as Args: for each entry, what is behind the colon."""
    found = re.search(rf"^{title}:\n((?:    .*\n|\n)+)", doc + "\n", re.M)
    entries = re.findall(r"^    (\S.*?):((?:.*\n)(?:     .*\n)*)", found[1] if found else "", re.M)
    return {key: " ".join(text.split()) for key, text in entries}


def arguments(doc):
    """What a docstring says of each argument, by name."""
    return {name: text for key, text in section(doc, "Args").items() for name in key.split(", ")}


def referred(doc):
    """What the functions and classes that a docstring refers to say of their arguments."""
    found = {}
    for name in re.findall(r":(?:func|class|meth):`([\w.]+)`", doc):
        target = mmix_fast
        for part in name.removeprefix("mmix_fast.").split("."):
            target = getattr(target, part, None)
        found |= arguments(inspect.getdoc(target) or "")
    return found
