"""The README's training loops run, and add as few lines as they mark."""

import pytest
import torch

import mmix_fast
from tests.support.readme import loop


def test_plain_loop():
    names, code, before = loop("ManifoldMixup(model", 2)
    exec(code, names)
    assert names["mixup"].layers == ("", "1", "3") and names["mixup"].mix is not None
    assert all(
        not torch.equal(a, b) for a, b in zip(before, names["model"].parameters(), strict=True)
    )


def test_timm_loop():
    pytest.importorskip("numpy")
    names, code, _ = loop("integrations.timm", 3)
    exec(code, names)
    assert names["loss"].isfinite() and names["y"].shape == (6, 10)


def test_inplace_backward_says_what_reading_the_logits_gives():
    """No error is possible there, so the docstring must say it."""
    words = mmix_fast.mixed_cross_entropy.__doc__.split("inplace_backward:")[1].split("Returns")[0]
    assert "read" in words and "hold the gradient" in words
