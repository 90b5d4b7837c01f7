"""Measured figures in README.md and docs/ come from the committed data files only."""

import re
from pathlib import Path

import pytest

from benchmarks import report

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WORDS = 900  # of README.md, without what the report writes: about two screens
# A number with the unit of a time, a rate, a ratio or a share. 128x64 is a shape.
FIGURE = re.compile(
    r"(?<![\w.])\d[\d.,]*\s?(?:x(?![\w])|times\s+(?:as\s+)?(?:fast|slow|long)|[µu]s\b|ms\b|GB/s|MB/s|%)"
)


def by_hand(text):
    """The text without the blocks that the report writes."""
    return re.sub(r"<!-- (\w+) -->.*?<!-- end of \1 -->", "", text, flags=re.S)


def prose(text):
    """What is written by hand, without code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", by_hand(text), flags=re.S))


def test_the_tables_are_those_of_the_data_files():
    for page, text in report.texts(ROOT, report.read(ROOT)).items():
        assert (ROOT / page).read_text() == text, f"{page}: run python -m benchmarks report"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_measured_figure_is_written_by_hand(page):
    assert FIGURE.findall(prose(page.read_text())) == []


@pytest.mark.parametrize(
    "text",
    ["3.5x faster", "12 us", "0.4 µs", "1,200 ms", "40 GB/s", "a share of 7 %", "2 times as fast"],
)
def test_what_a_figure_is(text):
    assert FIGURE.search(text)


@pytest.mark.parametrize("text", ["128x64x32x32", "2x2", "alpha 2.0", "3 seeds", "epochs 400, 800"])
def test_what_no_figure_is(text):
    assert not FIGURE.search(text)


def test_the_readme_is_short_and_names_no_goals():
    text = (ROOT / "README.md").read_text()
    words = [word for word in by_hand(text).split() if re.search(r"\w", word)]
    assert len(words) <= WORDS
    block = re.search(r"<!-- performance -->\s*(.*?)\s*<!-- end of performance -->", text, re.S)
    assert len(block[1].splitlines()) == 2 + 6 and "goal" not in text
