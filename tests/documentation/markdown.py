"""Blocks, links and headings of the Markdown files, read by a CommonMark parser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

markdown_it = pytest.importorskip("markdown_it")

ROOT = Path(__file__).parents[2]
NEEDS = re.compile(r"<!-- runs: (.*) -->")


@dataclass(frozen=True)
class Block:
    """A block of Python; ``needs``: what the comment before it says that it needs, or ""."""

    line: int  # of its first line of code, from 1
    code: str
    needs: str


@cache
def tokens(path: Path):
    return markdown_it.MarkdownIt("commonmark").parse(path.read_text(encoding="utf-8"))


def python_blocks(path: Path) -> list[Block]:
    found, needs = [], ""
    for token in tokens(path):
        if token.type == "fence" and token.info.strip() == "python":
            found.append(Block(token.map[0] + 2, token.content, needs))
        comment = NEEDS.search(token.content) if token.type == "html_block" else None
        needs = comment.group(1) if comment else ""
    return found


def links(path: Path) -> Iterator[str]:
    """The targets of all links and pictures."""
    for token in tokens(path):
        for part in token.children or ():
            if target := part.attrGet("href") or part.attrGet("src"):
                yield target


def headings(path: Path) -> list[tuple[int, str]]:
    """(level, text) of each heading."""
    every = tokens(path)
    return [
        (int(token.tag[1:]), "".join(part.content for part in following.children))
        for token, following in pairwise(every)
        if token.type == "heading_open"
    ]


@cache
def anchors(path: Path) -> frozenset[str]:
    """The names that GitHub gives to the headings: a repeated one gets -1, -2 and so on."""
    found: set[str] = set()
    for _, text in headings(path):
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        number, free = 0, name
        while free in found:
            number += 1
            free = f"{name}-{number}"
        found.add(free)
    return frozenset(found)
