"""The check of the built pages' links."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs/check_links.py"
GOOD = """<h1 id="a-b">A</h1> <a href="#a-b">1</a> <a href="sub/other.html#é">2</a>
<a href="#">3</a> <a href="sub/other.html#%C3%A9">6</a> <img src="a%20picture.png">
<a href="https://no.such/place#x">4</a> <a href="mailto:a@b.c">5</a>"""


def check(folder):
    done = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines()


@pytest.fixture
def site(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a picture.png").touch()
    (tmp_path / "sub/other.html").write_text(
        '<p id="é"></p><a href="../index.html#a-b"></a>', encoding="utf-8"
    )
    (tmp_path / "index.html").write_text(GOOD, encoding="utf-8")
    return tmp_path


def test_all_links_are_good(site):
    assert check(site) == (0, ["all links lead somewhere"])


@pytest.mark.parametrize(
    "link, why",
    [
        ('<a href="#no">', "'#no': no such id in the page"),
        ('<a href="sub/other.html#a-b">', "'sub/other.html#a-b': no such id in the page"),
        ('<a href="other.html">', "'other.html': no such file"),
        ('<a href="sub">', "'sub': no such file"),
        ('<img src="no.png">', "'no.png': no such file"),
        ('<script src="no.js">', "'no.js': no such file"),
    ],
)
def test_a_broken_link_is_named(site, link, why):
    with open(site / "index.html", "a", encoding="utf-8") as page:
        page.write(link)
    assert check(site) == (1, [f"index.html: {why}"])


def test_a_folder_without_pages(tmp_path):
    assert check(tmp_path) == (1, [f"{tmp_path}: no pages"])
