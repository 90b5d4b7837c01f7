"""The README's training loops run, and change as few lines as they say."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmix_fast

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.S
)


def run(needle, allowed):
    (code,) = [block for block in BLOCKS if needle in block]
    assert code.count("# new") <= allowed
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10)
    )
    loader = [(torch.randn(6, 3, 8, 8), torch.randint(0, 10, (6,))) for _ in range(4)]
    names = {"model": model, "loader": loader, "mmix_fast": mmix_fast, "torch": torch, "F": F}
    names["optimizer"] = torch.optim.SGD(model.parameters(), 0.01)
    before = [p.clone() for p in model.parameters()]
    return names, code, before


def test_plain_loop():
    names, code, before = run("ManifoldMixup(model", 2)
    exec(code, names)
    assert names["mixup"].layers == ("", "1", "3") and names["mixup"].mix is not None
    assert all(
        not torch.equal(a, b) for a, b in zip(before, names["model"].parameters(), strict=True)
    )


def test_timm_loop():
    pytest.importorskip("numpy")
    names, code, _ = run("integrations.timm", 3)
    exec(code, names)
    assert names["loss"].isfinite() and names["y"].shape == (6, 10)


def test_inplace_backward_says_what_reading_the_logits_gives():
    """Nothing can raise there: only words can tell."""
    words = mmix_fast.mixed_cross_entropy.__doc__.split("inplace_backward:")[1].split("Returns")[0]
    assert "read" in words and "hold the gradient" in words
