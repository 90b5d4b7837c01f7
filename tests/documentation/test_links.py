"""Links between the Markdown files lead to a file, and to a heading where they name one."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.documentation.markdown import ROOT, anchors, headings, links

DOCS = ROOT / "docs"
PATTERNS = ("*.md", "csrc/*.md", "benchmarks/*.md", "docs/**/*.md")
FILES = [path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def broken(path: Path) -> list[str]:
    found = []
    for link in links(path):
        url = urlsplit(link)
        if url.scheme:
            continue
        target = (path.parent / unquote(url.path)).resolve() if url.path else path
        if ROOT not in target.parents or not target.exists():
            found.append(f"{link}: no such file")
        elif url.fragment and url.fragment not in anchors(target):
            found.append(f"{link}: no such heading")
    return found


@pytest.mark.parametrize("path", FILES, ids=name)
def test_links_lead_somewhere(path):
    assert not broken(path)


def test_what_is_found_broken(tmp_path, monkeypatch):
    """Also the anchors: punctuation goes, spaces become hyphens, a repeated heading is numbered."""
    (tmp_path / "other.md").write_text("# A title\n## `mix_`, why-not?\n## Twice\n## Twice\n")
    (tmp_path / "folder").mkdir()
    page = tmp_path / "page.md"
    right = [
        "other.md",
        "other.md#mix_-why-not",
        "other.md#twice-1",
        "#own",
        "folder",
        "https://a.b/c",
    ]
    wrong = ["none.md", "none.png", "other.md#twice-2", "#other", "../outside.md"]
    lines = [f"- [text]({link})" for link in [*right, *wrong]]
    page.write_text("# Own\n" + "\n".join(lines) + "\n| a |\n| - |\n| ![x](cell.png) |\n")
    (tmp_path.parent / "outside.md").touch()
    monkeypatch.setattr("tests.documentation.test_links.ROOT", tmp_path)
    reasons = ["file", "file", "heading", "heading", "file", "file"]
    assert broken(page) == [
        f"{link}: no such {reason}"
        for link, reason in zip([*wrong, "cell.png"], reasons, strict=True)
    ]


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=name)
def test_a_guide_has_one_title_and_is_in_the_index(path):
    assert [level for level, _ in headings(path)].count(1) == 1
    index = DOCS / "index.md"
    assert path == index or path.name in links(index)
