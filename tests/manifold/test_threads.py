"""Forwards in two threads: each loss and each recomputation takes the draw of its own forward."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import mmix_fast as m
from tests.manifold.models import X, Y, is_loss_of, mixed_mlp


class Checkpointed(nn.Module):
    def __init__(self, reentrant=False):
        super().__init__()
        self.a, self.b, self.reentrant = nn.Linear(16, 8), nn.Linear(8, 5), reentrant

    def forward(self, x):
        return self.b(F.gelu(checkpoint(self.a, x, use_reentrant=self.reentrant)))


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return model.a.weight.grad.clone()


@pytest.mark.parametrize("side", ["before", "inside"])
def test_recomputation_of_forwards_in_two_threads(side):
    """Autograd numbers its nodes in each thread, so two forwards can have the same numbers."""
    model = Checkpointed()
    mixup = m.ManifoldMixup(model, ["a"])
    if side == "before":  # this thread's numbers are higher than the other's
        for _ in range(50):
            model(X)

    def forward():
        return model(X), mixup.mix

    with ThreadPoolExecutor(1) as pool:
        made = [forward(), pool.submit(forward).result(), forward(), pool.submit(forward).result()]
    for z, draw in (made[k] for k in (1, 0, 3, 2)):
        got = gradient(model, mixup.loss(z, Y))
        h = draw.mix(F.linear(X, model.a.weight, model.a.bias))
        torch.testing.assert_close(got, gradient(model, draw.cross_entropy(model.b(F.gelu(h)), Y)))


def test_two_threads_train_at_once():
    model, mixup = mixed_mlp(["0", "1", "3"])

    def steps(seed):
        ok = []
        for _ in range(20):
            z = checkpoint(model, X, use_reentrant=False)
            draw = mixup._mixing._forwards.that_made(z).draw
            hand = model.by_hand(X, mixup.layers[draw.layer], draw.mix)
            ok.append(torch.allclose(z, hand) and is_loss_of(mixup, z, draw.mix))
            weight = model[0].weight
            (got,) = torch.autograd.grad(mixup.loss(z, Y), weight)
            (want,) = torch.autograd.grad(draw.mix.cross_entropy(hand, Y), weight)
            ok.append(torch.allclose(got, want))
        return all(ok)

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(steps, range(2)))


def test_an_ambiguous_reentrant_recomputation_raises():
    model = Checkpointed(reentrant=True)
    mixup = m.ManifoldMixup(model, ["a"])
    x = X.clone().requires_grad_()

    def forward():
        return mixup.loss(model(x), Y)

    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(forward).result()
    here = forward()
    while here.grad_fn._sequence_nr() < there.grad_fn._sequence_nr():
        here = forward()
    with pytest.raises(RuntimeError, match="cannot tell which forward a checkpoint recomputes"):
        there.backward()
