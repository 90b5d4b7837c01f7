"""The code of the guides in docs/ runs as it stands, each page from top to bottom.

A block after ``<!-- runs: NAME -->`` runs only where NAME is, in a test of its own, after the
unmarked blocks of its page.
"""

import ast
import re
import shutil
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benchmarks import process_group
from benchmarks.torchvision_ops import declare_missing
from tests.documentation.markdown import ROOT, Block, python_blocks

PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCKS = {page: python_blocks(page) for page in PAGES}

# NAME: (is it here?, the mark of its tests). The libraries are installed by `make test-deep`.
LIBRARIES = ("timm", "torchvision", "torchmetrics", "transformers", "pytorch_lightning")
NEEDS = {
    **{library: (partial(find_spec, library), pytest.mark.deep) for library in LIBRARIES},
    "g++": (partial(shutil.which, "g++"), pytest.mark.deep),  # torch.compile calls it: slow
    "cuda": (torch.cuda.is_available, pytest.mark.gpu),
}


@pytest.fixture(autouse=True)
def nothing_left(tmp_path, monkeypatch):
    """Files go to a temporary folder; graphs and the process group that a page made end with it."""
    monkeypatch.chdir(tmp_path)
    yield
    torch.compiler.reset()  # else a later test would get the graph of a model of the same class
    if dist.is_available() and dist.is_initialized():
        process_group.leave()


def compiled(page: Path, block: Block):
    """Errors name the page, and the line in it."""
    return compile("\n" * (block.line - 1) + block.code, str(page), "exec")


def run(page: Path, needs: str = "") -> dict[str, object]:
    """The names that the page has defined at its end."""
    names: dict[str, object] = {"__name__": page.stem}
    for block in python_blocks(page):
        if block.needs in ("", needs):
            exec(compiled(page, block), names)
    return names


def with_needs():
    for page in PAGES:
        for name in dict.fromkeys(block.needs for block in BLOCKS[page] if block.needs):
            yield pytest.param(page, name, id=f"{page.stem}-{name}", marks=NEEDS[name][1])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_compiles(page):
    for block in BLOCKS[page]:
        compiled(page, block)


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]], ids=lambda p: p.stem)
def test_a_page_runs(page):
    run(page)


@pytest.mark.parametrize(("page", "name"), list(with_needs()))
def test_a_page_runs_where_something_is_installed(page, name):
    if not NEEDS[name][0]():
        pytest.skip(f"{name} is not here")
    declare_missing()  # before torchvision is imported, by whichever library
    run(page, name)


def test_blocks_of_python(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n```python\na = 1\n```\n\n<!-- runs: timm -->\n```python\nb = 2\n```\n"
        "```bash\nmake\n```\n```python\nc\n```\n<!-- runs: cuda -->\ntext\n```python\nd\n```\n"
    )
    assert python_blocks(page) == [
        Block(3, "a = 1\n", ""),
        Block(8, "b = 2\n", "timm"),
        Block(14, "c\n", ""),
        Block(19, "d\n", ""),  # the comment is not next to it
    ]


def test_run(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nran = [1]\n```\n<!-- runs: timm -->\n```python\nran += [2]\n```\n"
        "<!-- runs: cuda -->\n```python\nran += [3]\n```\n```python\nran += [4]\n```\n"
    )
    assert run(page)["ran"] == [1, 4] and run(page, "timm")["ran"] == [1, 2, 4]
    page = tmp_path / "wrong.md"
    page.write_text("# A\n\n```python\na = 1\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as error:
        run(page)
    assert (error.traceback[-1].path, error.traceback[-1].lineno + 1) == (page, 5)


def test_the_errors_that_a_page_quotes_are_in_the_code():
    files = (ROOT / "mmix_fast").rglob("*.py")
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    texts = [str(node.value) for node in nodes if isinstance(node, ast.Constant)]
    quoted = re.findall(r'^\| "(.*?)"', (ROOT / "docs/faq.md").read_text(), re.M)
    assert len(quoted) > 5
    assert [quote for quote in quoted if not any(quote in text for text in texts)] == []
