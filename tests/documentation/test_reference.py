"""The API reference lists every public name once, and docstrings say what they must."""

import builtins
import inspect
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.documentation.public_api import (
    MODULES,
    NAMES,
    arguments,
    load,
    parameters,
    referred,
    section,
)

PAGES = Path(__file__).parents[2] / "docs"
TEXT = "\n".join(page.read_text() for page in sorted(PAGES.glob("reference/*.md")))
TEXT += (PAGES / "reference.md").read_text()
LISTED = re.findall(r"^\.\. auto(\w+):: ([\w.]+)(?:\(\))?$(?:\n   :members:(.*)$)?", TEXT, re.M)

CANNOT_FAIL = ("Mix", "MixedTarget", "Status", "backends", "set_validation")
# The others are PyTorch in fewer lines, or another library's.
OWN_IDEAS = (
    *CANNOT_FAIL,
    "use_backend",
    "ManifoldMixupCallback",
    "MixupTrainer",
    "MixedAccuracy",
)


def last(name):
    return name.rpartition(".")[2]


def test_every_public_name_is_listed_once():
    by_kind = {kind: Counter() for kind in ("module", "function", "class")}
    for kind, name, _ in LISTED:
        by_kind[kind][name] += 1
    assert by_kind["module"] == Counter(MODULES)
    assert by_kind["function"] + by_kind["class"] == Counter(NAMES)


@pytest.mark.parametrize("kind, name, members", LISTED)
def test_what_is_listed_exists(kind, name, members):
    found = load(name)
    is_kind = {"module": inspect.ismodule, "function": inspect.isfunction, "class": inspect.isclass}
    assert is_kind[kind](found)
    assert all(hasattr(found, member) for member in members.replace(",", " ").split())


def documented():
    """(name, None), and (name, method) of the classes whose methods the reference shows."""
    methods = {name: members.replace(",", " ").split() for _, name, members in LISTED}
    shown = {"mmix_fast.Mix", "mmix_fast.ManifoldMixup"}
    for name in NAMES:
        yield name, None
        if name in shown:
            yield from ((name, m) for m in vars(load(name)) if not m.startswith("_"))
        elif name == "mmix_fast.MixedTarget":
            yield from ((name, method) for method in methods[name])


@pytest.mark.parametrize("name, method", list(documented()))
def test_each_argument_is_explained(name, method):
    """In Args, by a name in the text, or in a docstring that this one refers to."""
    found = load(name) if method is None else getattr(load(name), method)
    doc = inspect.getdoc(found)
    assert doc and doc[0] not in "\n "
    if isinstance(found, property):
        return
    said = arguments(doc).keys() | referred(doc).keys()
    for parameter in parameters(found):
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            assert referred(doc), parameter
        else:
            assert parameter.name in said or f"``{parameter.name}``" in doc, parameter


@pytest.mark.parametrize("name", NAMES)
def test_shapes_or_dtypes_of_tensors(name):
    found = load(name)
    doc = inspect.getdoc(found)
    said = referred(doc) | arguments(doc)
    for parameter in parameters(found):
        if "Tensor" in str(parameter.annotation) and parameter.name in said:
            text = said[parameter.name]
            assert re.search(r"\([NBCn]?,|shape|as in|as there|a number", text), parameter


@pytest.mark.parametrize("name", [n for n in NAMES if last(n) not in CANNOT_FAIL])
def test_what_it_raises(name):
    raised = section(inspect.getdoc(load(name)), "Raises")
    assert raised
    for key, text in raised.items():
        assert text
        for error in key.split(", "):
            assert issubclass(getattr(builtins, error), Exception)


@pytest.mark.parametrize("name", NAMES)
def test_an_example(name):
    """In its docstring or its module's; test_examples.py runs them all."""
    found = load("mmix_fast.backends" if last(name) == "Status" else name)
    docs = [inspect.getdoc(found), inspect.getdoc(inspect.getmodule(found))]
    if last(name) in ("Mix", "MixedTarget"):  # other functions make one
        assert ">>> " in docs[0]
    else:
        used = rf"^(>>>|\.\.\.) .*\b{found.__name__}\("
        assert any(re.search(used, doc or "", re.M) for doc in docs)


@pytest.mark.parametrize("name", [n for n in NAMES if last(n) not in OWN_IDEAS])
def test_equivalent_and_source(name):
    doc = inspect.getdoc(load(name))
    assert re.search(r"^Equivalent (PyTorch|code)[:,]", doc, re.M)
    assert re.search(r"^Source: |, and source: ", doc, re.M)
