"""A loss takes the draw of the forward that made its logits, or raises if that is unknown."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmix_fast as m
from benchmarks.models import MLP
from tests.manifold.models import X, Y, is_loss_of, mixed_mlp

WORK = {
    "output": lambda z: z,
    "float": lambda z: z.double().float(),
    "scaled": lambda z: z / 1.5 + 0.1,
    "cut": lambda z: z[:, :4].clone(),
    "detached": lambda z: z.detach(),
    "view": lambda z: z.view(1, 6, 5).movedim(0, 1).flatten(1),
    "leaf": lambda z: z.detach().requires_grad_(),
    "in place": lambda z: z.mul_(0.5),
}


@pytest.mark.parametrize("work", WORK)
def test_losses_in_any_order(work):
    model, mixup = mixed_mlp(["", "1", "3"])
    y = Y.clamp(max=3)
    made = []
    for _ in range(4):
        z = model(X)
        made.append((z, mixup.mix))
        with torch.no_grad():
            model(X)  # a forward without a loss, in training
            model.eval()(X)
            model.train()
    z, _ = made[0]
    assert not torch.allclose(made[0][1].cross_entropy(z, y), made[1][1].cross_entropy(z, y))
    for k in (2, 0, 3, 1, 0):
        z, draw = made[k]
        worked = WORK[work](z)
        assert is_loss_of(mixup, worked, draw, y), k
        assert torch.equal(mixup.accuracy(worked, y), draw.accuracy(worked, y))


def test_without_grad_mode_the_output_or_a_view_of_it_identifies_its_forward():
    model, mixup = mixed_mlp()
    with torch.no_grad():
        a, draw_a = model(X), mixup.mix
        b, draw_b = model(X), mixup.mix
        assert is_loss_of(mixup, b, draw_b) and is_loss_of(mixup, a, draw_a)
        assert is_loss_of(mixup, a[:, :], draw_a) and is_loss_of(mixup, a.view(6, 5), draw_a)
        for copied in (a.clone(), a.double()):
            mixup.loss(b, Y)
            model(X)
            with pytest.raises(RuntimeError, match="cannot tell which forward made these logits"):
                mixup.loss(copied, Y)


def test_a_detached_copy_needs_an_unambiguous_forward():
    model, mixup = mixed_mlp()
    z = model(X)
    assert is_loss_of(mixup, z.detach().clone(), mixup.mix)  # there was only one forward
    z = model(X)
    with pytest.raises(RuntimeError, match="cannot tell which forward"):
        mixup.accuracy(z.detach().clone(), Y)
    mixup.loss(z, Y)
    assert is_loss_of(mixup, z.detach().clone(), mixup.mix)


def test_joined_logits_raise():
    model, mixup = mixed_mlp()
    a, b = model(X), model(X)
    with pytest.raises(RuntimeError, match="from one forward of the model, got 2 joined"):
        mixup.loss(torch.cat([a, b]), torch.cat([Y, Y]))
    with pytest.raises(RuntimeError, match="got 2 joined"):
        mixup.loss((a + b) / 2, Y)


def test_a_forward_that_skips_hooks_has_no_draw():
    model, mixup = mixed_mlp()
    with pytest.raises(RuntimeError, match="need a forward of the model first"):
        mixup.loss(model.forward(X), Y)
    mixup.loss(model(X), Y)
    for logits in (model.forward(X), MLP()(X)):
        with pytest.raises(RuntimeError, match=r"model.forward\(x\) was called, which skips"):
            mixup.loss(logits, Y)
        with pytest.raises(RuntimeError, match="no forward that ManifoldMixup saw"):
            mixup.accuracy(logits, Y)


def test_the_loss_of_an_unmixed_forward_stays_plain():
    model, mixup = mixed_mlp()
    mixed, draw = model(X), mixup.mix
    evaluated = model.eval()(X)
    model.train()
    mixup.enabled = False
    disabled = model(X)
    mixup.enabled, mixup.prob = True, 0.0
    unlucky = model(X)
    mixup.prob = 1.0
    model(X)
    for z in (evaluated, disabled, unlucky):
        assert is_loss_of(mixup, z, None)
    assert is_loss_of(mixup, mixed, draw)
    model.eval()
    assert is_loss_of(mixup, mixed, draw) and is_loss_of(mixup, MLP()(X), None)
    mixup.close()
    assert is_loss_of(mixup, mixed, draw) and is_loss_of(mixup, model.train()(X), None)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("position", ["before", "after"])
def test_after_an_exception_no_draw_is_left(error, position):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.head, self.fail = nn.Linear(16, 8), nn.Linear(8, 5), None

        def forward(self, x):
            if self.fail == "before":
                raise error("stop")
            x = self.enc(x)
            if self.fail == "after":
                raise error("stop")
            return self.head(x)

    model = Net()
    mixup = m.ManifoldMixup(model, ["enc"])
    model.fail = position
    with pytest.raises(error):
        model(X)
    model.fail = None
    plain = F.linear(X, model.enc.weight, model.enc.bias)
    if error is not KeyboardInterrupt:
        assert torch.equal(model.enc(X), plain)
    assert torch.equal(model.eval().enc(X), plain)
    z = model.train()(X)
    assert torch.equal(z, model.head(mixup.mix.mix(plain)))
    assert is_loss_of(mixup, z, mixup.mix)


def test_a_second_manifoldmixup_raises_until_the_first_is_closed():
    model, mixup = mixed_mlp()
    wrapped = nn.Sequential(model)
    for root, layers in ((model, ["0"]), (wrapped, [""]), (model[0], [""])):
        with pytest.raises(RuntimeError, match=r"one ManifoldMixup at a time.*close\(\)"):
            m.ManifoldMixup(root, layers)
    assert len(model[1]._forward_hooks) == 1 and not wrapped._forward_pre_hooks
    mixup.close()
    with m.ManifoldMixup(wrapped, [""]):
        pass
    with m.ManifoldMixup(model, ["0"]):
        m.ManifoldMixup(MLP(), ["0"])  # another model of the same class


def test_models_that_share_a_layer_have_draws_of_their_own():
    shared = nn.Linear(16, 16)
    models = [nn.Sequential(shared, nn.Linear(16, 5)) for _ in range(2)]
    mixups = [m.ManifoldMixup(model, ["0"]) for model in models]
    z = [model(X) for model in models]
    for model, mixup, logits in zip(models, mixups, z, strict=True):
        assert torch.equal(logits, model[1](mixup.mix.mix(shared(X))))
        assert is_loss_of(mixup, logits, mixup.mix)
    with pytest.raises(RuntimeError, match="no forward that ManifoldMixup saw"):
        mixups[0].loss(z[1], Y)


def test_two_mixed_models_in_one_graph():
    first, second = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), MLP()
    one, two = m.ManifoldMixup(first, ["0"]), m.ManifoldMixup(second, ["0"])
    z = second(first(X))
    assert is_loss_of(one, z, one.mix) and is_loss_of(two, z, two.mix)


def test_nothing_is_kept_longer_than_the_graph():
    model, mixup = mixed_mlp()
    kept = []
    for _ in range(100):
        z = model(X)
        kept.append(weakref.ref(mixup.mix.perm))
        mixup.loss(z, Y).backward()
    gc.collect()
    assert sum(ref() is not None for ref in kept[:-20]) == 0
    assert len(mixup._mixing._forwards._storages) < 40


@pytest.mark.parametrize("value", [None, [1.0], {"logits": X}, (X, X), 1.0])
def test_logits_that_are_not_a_tensor(value):
    model, mixup = mixed_mlp()
    model(X)
    for call in (mixup.loss, mixup.accuracy):
        with pytest.raises(TypeError, match="logits must be a Tensor"):
            call(value, Y)
