"""A ViT with a head of 21,841 classes, with the real timm."""

import pytest
import torch
from torch import nn

import mmix_fast

pytestmark = pytest.mark.deep
timm = pytest.importorskip("timm")


def test_a_vit_with_a_head_of_many_classes():
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
    head, classes = nn.Linear(192, 21841), 21841
    mixup = mmix_fast.ManifoldMixup(backbone, layers="auto")
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], 0.1)
    x, y = torch.randn(8, 3, 32, 32), torch.randint(0, classes, (8,))
    losses, layers = [], set()
    for _ in range(12):
        features = backbone(x)
        want = mixup.mix.cross_entropy(head(features), y)
        loss = mixup.linear_loss(features, head, y)
        torch.testing.assert_close(loss, want)
        leaves = [*backbone.parameters(), *head.parameters()]
        truths = torch.autograd.grad(want, leaves, retain_graph=True, allow_unused=True)
        optimizer.zero_grad()
        loss.backward()
        for p, truth in zip(leaves, truths, strict=True):
            torch.testing.assert_close(p.grad, truth, rtol=1e-3, atol=1e-5)
        optimizer.step()
        losses.append(loss.item())
        layers.add(mixup.layer)
    assert min(losses[6:]) < losses[0] and len(layers) > 1
