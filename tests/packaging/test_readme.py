"""The README's training loops run, and add as few lines as they mark."""

import types

import pytest
import torch
from torch import nn

import mmix_fast
from tests.support.readme import BLOCKS, loop


def test_plain_loop():
    names, code, before = loop("ManifoldMixup(model", 2)
    exec(code, names)
    assert names["mixup"].layers == ("", "1", "3") and names["mixup"].mix is not None
    assert all(
        not torch.equal(a, b) for a, b in zip(before, names["model"].parameters(), strict=True)
    )


def test_timm_loop():
    pytest.importorskip("numpy")
    names, code, _ = loop("SoftTargetCrossEntropy", 3)
    exec(code, names)
    assert names["loss"].isfinite() and names["y"].shape == (6, 10)


def test_other_losses_and_batches():
    pytest.importorskip("numpy")
    (code,) = [block for block in BLOCKS if "mixed_binary_cross_entropy" in block]
    x, images = torch.rand(6, 3, 8, 8), torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    names = {
        "mmix_fast": mmix_fast,
        "x": x,
        "y": torch.randint(0, 10, (6,)),
        "logits": torch.randn(6, 10),
        "multi_hot": torch.rand(6, 10) < 0.3,
        "unlabelled": torch.rand(6, 3, 8, 8),
        "perm": torch.randperm(6),
        "lam": torch.tensor(0.3),
        "images": images.clone(),
        "masks": torch.randint(0, 5, (6, 8, 8)),
    }
    exec(code, names)
    assert names["loss"].isfinite() and names["h"].shape == x.shape
    assert isinstance(names["target"], mmix_fast.MixedTarget)
    perm = names["perm"]
    assert torch.equal(names["images"][..., 2:6, 0:4], images[perm][..., 2:6, 0:4])


def test_a_head_of_many_classes():
    names, code, _ = loop("linear_loss", 0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 384))

    def create_model(name, num_classes):
        assert (name, num_classes) == ("vit_small_patch16_224", 0)
        return model

    names["timm"] = types.SimpleNamespace(create_model=create_model)
    names["mmix_fast"] = types.SimpleNamespace(
        ManifoldMixup=lambda model, layers: mmix_fast.ManifoldMixup(model, ["", "0"])
    )
    exec(code, names)
    assert names["loss"].isfinite() and names["head"].weight.shape == (21841, 384)


def test_inplace_backward_says_what_reading_the_logits_gives():
    """No error is possible there, so the docstring must say it."""
    words = mmix_fast.mixed_cross_entropy.__doc__.split("inplace_backward:")[1].split("Returns")[0]
    assert "read" in words and "hold the gradient" in words
