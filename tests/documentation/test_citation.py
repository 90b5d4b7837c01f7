"""CITATION.cff, which GitHub and reference managers read."""

import re
from pathlib import Path

import yaml  # pre_commit needs it

import mmix_fast

ROOT = Path(__file__).parents[2]


def test_it_is_of_this_version_and_licence():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (licence,) = re.findall('^license = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert cited["cff-version"] == "1.2.0"
    assert (cited["title"], cited["version"]) == ("mmix_fast", mmix_fast.__version__)
    assert cited["license"] == licence
    assert cited["message"] and cited["authors"] == [{"name": "The mmix_fast authors"}]
    (paper,) = cited["references"]
    assert (paper["type"], paper["year"]) == ("conference-paper", 2019)
    assert paper["title"].startswith("Manifold Mixup")
    assert paper["authors"][0] == {"family-names": "Verma", "given-names": "Vikas"}
