"""Sphinx, for `make docs`: the Markdown files of the repository, and a reference from docstrings.

The source folder is the repository, so that all links between these files are checked.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from docutils.nodes import document
from sphinx.addnodes import pending_xref
from sphinx.util.inspect import signature, stringify_signature

import mmix_fast

project = "mmix_fast"
author = copyright = "the mmix_fast authors"
release = version = mmix_fast.__version__

OUTSIDE = ["README", "CHANGELOG", "CONTRIBUTING", "csrc/*", "benchmarks/**"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", *(f"{pages}.md" for pages in OUTSIDE)]
exclude_patterns = [".*", "build", "dist"]  # folders that need not be walked through

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"mmix_fast {release}"
myst_heading_anchors = 4  # headings can be linked to, by GitHub's rule for their names

# These libraries may be absent, and the pages must not depend on it.
autodoc_mock_imports = [
    "lightning",
    "pytorch_lightning",
    "torchmetrics",
    "torchvision",
    "transformers",
]
autodoc_member_order = "bysource"
napoleon_use_param = False  # with it, "perm, lam: as in ..." is one parameter with a type
napoleon_use_rtype = False

# Without a network, what other libraries document cannot be linked to.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|np|numpy|nn|collections\.abc)\..*"),
    (r"py:.*", r"(Tensor|Any|Callable|Sequence)"),
]


def contents(caption: str, pages: Iterable[str]) -> str:
    options = [":hidden:", ":glob:", f":caption: {caption}"]
    return "\n".join(["", "```{toctree}", *options, "", *pages, "```", ""])


def add_contents(app: Any, name: str, source: list[str]) -> None:
    """What index.md and reference.md link to, in their order, and OUTSIDE make the sidebar.

    GitHub would show Sphinx's directive as a block of code, so the files do not have it.
    """
    if name == root_doc:
        guides = dict.fromkeys(re.findall(r"\]\((\w+)\.md", source[0]))
        source[0] += contents("Guides", guides)
        source[0] += contents("Project", [f"/{pages}" for pages in OUTSIDE])
    elif name == "docs/reference":
        source[0] += contents("Reference", re.findall(r"\]\((reference/\w+)\.md", source[0]))


def keep_words(app: Any, tree: document) -> None:
    """A folder has no page: of a link to it, which GitHub can show, the words are kept."""
    here = Path(app.srcdir, app.env.docname).parent
    for link in list(tree.findall(pending_xref)):
        if link["reftype"] == "myst" and (here / link["reftarget"]).is_dir():
            link.replace_self(link.children)


def show_own_arguments(
    app: Any, what: str, name: str, obj: Any, options: Any, arguments: str, returns: str
) -> tuple[str, str] | None:
    """The arguments of __init__, where a base of another library would hide them.

    "()" was written in the page: the class has no __init__ of its own.
    """
    if what != "class" or arguments == "()":
        return None
    own = signature(obj.__init__, bound_method=True)
    shown = stringify_signature(own, show_return_annotation=False, unqualified_typehints=True)
    return shown, ""


def setup(app: Any) -> None:
    app.connect("source-read", add_contents)
    app.connect("doctree-read", keep_words)
    app.connect("autodoc-process-signature", show_own_arguments)
