"""docs/conf.py: what it adds to Sphinx. Skipped before `make docs` has installed that."""

import runpy
import types
from pathlib import Path

import pytest

pytest.importorskip("sphinx", exc_type=ImportError)

from docutils.nodes import Text, inline, paragraph
from docutils.utils import new_document
from sphinx.addnodes import pending_xref

from tests.documentation.public_api import load

ROOT = Path(__file__).parents[2]
conf = types.SimpleNamespace(**runpy.run_path(str(ROOT / "docs/conf.py")))


def test_the_sidebar_is_the_list_of_index():
    source = ["# Guides\n[b](b.md), [a](a.md#x), [again](b.md), [out](../README.md)\n"]
    conf.add_contents(None, "docs/index", source)
    _, guides, outside = source[0].split("```{toctree}\n")
    assert guides.startswith(":hidden:\n:glob:\n:caption: Guides\n\nb\na\n```\n")
    assert "\n/README\n" in outside and outside.endswith("\n/benchmarks/**\n```\n")


def test_the_sidebar_has_the_pages_of_the_reference():
    source = ["[x](reference/b.md), [y](reference/a.md), [z](faq.md)\n"]
    conf.add_contents(None, "docs/reference", source)
    _, pages = source[0].split("```{toctree}\n")
    assert pages == ":hidden:\n:glob:\n:caption: Reference\n\nreference/b\nreference/a\n```\n"


def test_other_pages_stay_as_they_are():
    source = ["[b](b.md)"]
    conf.add_contents(None, "docs/faq", source)
    assert source == ["[b](b.md)"]


@pytest.mark.parametrize(
    "kind, target, words_only",
    [
        ("myst", "../mmix_fast", True),
        ("myst", "../csrc/BUILD.md", False),
        ("myst", "../no_such", False),
        ("func", "reference", False),
    ],
)
def test_links_to_folders(kind, target, words_only):
    app = types.SimpleNamespace(srcdir=ROOT, env=types.SimpleNamespace(docname="docs/faq"))
    link = pending_xref("", inline("", "", Text("words")), reftype=kind, reftarget=target)
    tree = new_document("faq")
    tree += paragraph("", "", link)
    conf.keep_words(app, tree)
    assert tree.astext() == "words"
    assert list(tree.findall(pending_xref)) == ([] if words_only else [link])


@pytest.mark.parametrize(
    "name, shown",
    [
        ("mmix_fast.dispatch.Status", "(usable: bool, reasons: tuple[str, ...])"),
        (
            "mmix_fast.integrations.torchmetrics.MixedAccuracy",
            "(topk: int = 1, **options: ~typing.Any)",
        ),
    ],
)
def test_the_arguments_of_a_class(name, shown):
    given = ("class", name, load(name), None, "(*args: Any, **kwargs: Any)", None)
    assert conf.show_own_arguments(None, *given) == (shown, "")


@pytest.mark.parametrize("what, arguments", [("function", "(x)"), ("class", "()")])
def test_other_arguments_are_sphinx_s(what, arguments):
    found = load("mmix_fast.dispatch.Status")
    assert conf.show_own_arguments(None, what, "name", found, None, arguments, None) is None


def test_what_is_connected():
    connected = {}
    conf.setup(types.SimpleNamespace(connect=connected.__setitem__))
    assert connected == {
        "autodoc-process-signature": conf.show_own_arguments,
        "doctree-read": conf.keep_words,
        "source-read": conf.add_contents,
    }
