"""Activation checkpointing: a recomputation in backward repeats the mix of its own forward."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mmix_fast as m
from benchmarks.models import MLP, Encoder


class Checkpointed(nn.Module):
    """Everything except the head is in one checkpoint."""

    def __init__(self, reentrant):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU())
        self.head = nn.Linear(8, 3)
        self.reentrant = reentrant

    def forward(self, x):
        x = x.requires_grad_() if self.reentrant else x
        if self.reentrant is None:
            return self.head(self.body(x))
        return self.head(checkpoint(self.body, x, use_reentrant=self.reentrant))


def gradients(model, losses):
    model.zero_grad()
    sum(losses).backward()  # reentrant checkpoints do not support autograd.grad
    return [p.grad for p in model.parameters()]


def check(model, mixup, plain, run, inputs, labels):
    """Several forwards before one backward; every second forward mixes nothing."""
    losses, hand = [], []
    for x, y in zip(inputs, labels, strict=True):
        losses.append(mixup.loss(run(model, x), y))
        with m.ManifoldMixup(plain, [mixup.layer]) as twin:
            twin._sample = lambda *a, d=mixup.mix, **k: d  # the same draw, without checkpoints
            hand.append(twin.loss(plain(x), y))
        mixup.enabled = False
        losses.append(mixup.loss(run(model, x), y))
        hand.append(mixup.loss(plain(x), y))
        mixup.enabled = True
    draw = mixup.mix
    for a, b in zip(gradients(model, losses), gradients(plain, hand), strict=True):
        torch.testing.assert_close(a, b)
    assert mixup.mix is draw


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("layer", ["", "body.0", "body.1", "body"])
def test_recomputation_of_a_part(reentrant, layer):
    model = Checkpointed(reentrant)
    plain = copy.deepcopy(model)
    plain.reentrant = None
    mixup = m.ManifoldMixup(model, [layer])
    inputs, labels = torch.randn(3, 5, 8), torch.randint(0, 3, (3, 5))
    check(model, mixup, plain, lambda f, x: f(x), inputs, labels)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("layer", ["", "0", "1"])
def test_recomputation_of_the_whole_model(reentrant, layer):
    model = MLP(8, 3)
    plain = copy.deepcopy(model)
    mixup = m.ManifoldMixup(model, [layer], generator=torch.Generator().manual_seed(0))
    inputs, labels = torch.randn(3, 5, 8, requires_grad=True), torch.randint(0, 3, (3, 5))
    check(
        model, mixup, plain, lambda f, x: checkpoint(f, x, use_reentrant=reentrant), inputs, labels
    )


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_of_the_blocks_of_an_encoder(reentrant):
    model = Encoder(checkpointing=reentrant)
    plain = copy.deepcopy(model)
    plain.checkpointing = None
    mixup = m.ManifoldMixup(model, Encoder.layers)
    inputs, labels = torch.randint(0, 11, (4, 3, 5)), torch.randint(0, 4, (4, 3))
    check(model, mixup, plain, lambda f, x: f(x), inputs, labels)


def test_evaluation_between_forward_and_backward():
    model = Checkpointed(False)
    mixup = m.ManifoldMixup(model, ["body.0"])
    x, y = torch.randn(5, 8), torch.randint(0, 3, (5,))
    loss = mixup.loss(model(x), y)
    want = gradients(model, [mixup.mix.cross_entropy(by_hand(model, x, mixup.mix), y)])
    with torch.no_grad():
        model.eval()(x)
        model.train()
    for a, b in zip(gradients(model, [loss]), want, strict=True):
        torch.testing.assert_close(a, b)


def by_hand(model, x, mix):
    h = mix.mix(model.body[0](x))
    return model.head(model.body[3](model.body[2](model.body[1](h))))


def test_any_number_of_forwards_before_a_backward():
    model = Checkpointed(False)
    mixup = m.ManifoldMixup(model, ["body.0"])
    x, y = torch.randn(2, 8), torch.tensor([0, 1])
    loss = mixup.loss(model(x), y)
    want = gradients(model, [mixup.mix.cross_entropy(by_hand(model, x, mixup.mix), y)])
    kept = [model(x) for _ in range(70)]
    for a, b in zip(gradients(model, [loss]), want, strict=True):
        torch.testing.assert_close(a, b)
    assert len(kept) == 70


def test_more_than_64_reentrant_forwards_before_a_backward_raise():
    """A reentrant forward runs without grad mode, so no graph holds its draw: 64 draws are kept."""
    model = MLP(8, 3)
    mixup = m.ManifoldMixup(model, ["0"])
    x = torch.randn(2, 8, requires_grad=True)
    losses = [checkpoint(model, x, use_reentrant=True).sum() for _ in range(65)]
    assert mixup.layer == "0"
    with pytest.raises(RuntimeError, match="more than 64 forwards"):
        losses[0].backward()
    losses[1].backward()
