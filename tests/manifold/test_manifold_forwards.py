"""Which draw belongs to which loss: that of the forward that made the logits, else an error."""

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import mmix_fast as m
from benchmarks.models import MLP

X, Y = torch.randn(6, 16), torch.tensor([0, 1, 2, 3, 4, 0])


def make(layers=("1",), **options):
    model = MLP()
    return model, m.ManifoldMixup(model, list(layers), **options)


def is_loss_of(mixup, logits, draw, y=Y):
    """Whether the loss of the logits is that of the draw (None: plain), and of no other."""
    got = mixup.loss(logits, y)
    plain = F.cross_entropy(logits, y)
    return torch.allclose(got, plain if draw is None else draw.cross_entropy(logits, y))


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
    model, mixup = make(["", "1", "3"])
    y = Y.clamp(max=3)
    made = []
    for _ in range(4):
        z = model(X)
        made.append((z, mixup.mix))
        with torch.no_grad():
            model(X)  # a probe in training
            model.eval()(X)
            model.train()
    z, _ = made[0]
    assert not torch.allclose(made[0][1].cross_entropy(z, y), made[1][1].cross_entropy(z, y))
    for k in (2, 0, 3, 1, 0):
        z, draw = made[k]
        worked = WORK[work](z)
        assert is_loss_of(mixup, worked, draw, y), k
        assert torch.equal(mixup.accuracy(worked, y), draw.accuracy(worked, y))


def test_without_grad_mode_the_output_itself_tells():
    model, mixup = make()
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


def test_a_copy_without_a_graph_follows_its_logits():
    model, mixup = make()
    z = model(X)
    assert is_loss_of(mixup, z.detach().clone(), mixup.mix)  # there is no other forward
    z = model(X)
    with pytest.raises(RuntimeError, match="cannot tell which forward"):
        mixup.accuracy(z.detach().clone(), Y)
    mixup.loss(z, Y)
    assert is_loss_of(mixup, z.detach().clone(), mixup.mix)


def test_joined_logits_raise():
    model, mixup = make()
    a, b = model(X), model(X)
    with pytest.raises(RuntimeError, match="from one forward of the model, got 2 joined"):
        mixup.loss(torch.cat([a, b]), torch.cat([Y, Y]))
    with pytest.raises(RuntimeError, match="got 2 joined"):
        mixup.loss((a + b) / 2, Y)


def test_a_forward_that_skips_hooks_has_no_draw():
    model, mixup = make()
    with pytest.raises(RuntimeError, match="need a forward of the model first"):
        mixup.loss(model.forward(X), Y)
    mixup.loss(model(X), Y)
    for logits in (model.forward(X), MLP()(X)):
        with pytest.raises(RuntimeError, match=r"model.forward\(x\) was called, which skips"):
            mixup.loss(logits, Y)
        with pytest.raises(RuntimeError, match="no forward that ManifoldMixup saw"):
            mixup.accuracy(logits, Y)


def test_forwards_of_eval_prob_and_enabled_are_plain_for_good():
    model, mixup = make()
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
def test_an_exception_leaves_nothing_mixing(error, position):
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


def test_a_second_one_raises_until_the_first_is_closed():
    model, mixup = make()
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


def test_a_student_behind_a_teacher_in_one_graph():
    first, second = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), MLP()
    one, two = m.ManifoldMixup(first, ["0"]), m.ManifoldMixup(second, ["0"])
    z = second(first(X))
    assert is_loss_of(one, z, one.mix) and is_loss_of(two, z, two.mix)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "shallow"])
def test_a_copied_manifoldmixup_is_closed(how, compiled):
    model = MLP()
    model.mixup = m.ManifoldMixup(model, ["1"], generator=None if compiled else torch.Generator())
    if compiled:
        torch._dynamo.reset()
        model.compile(backend="eager")
    model.mixup.loss(model(X), Y)
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        twin = copy.deepcopy(model)
        twin.mixup = copy.copy(model.mixup)
    z = twin(X)
    assert is_loss_of(twin.mixup, z, None)
    assert twin.mixup.mix is None and twin.mixup.layer is None
    assert twin.mixup.layers == ("1",) and "alpha=2.0" in repr(twin.mixup)
    assert not twin[1]._forward_hooks  # the inert hooks went at the first call
    assert not twin._forward_pre_hooks and not twin._forward_hooks
    twin.mixup.close()
    assert is_loss_of(model.mixup, model(X), model.mixup.mix)  # the original goes on
    twin.mixup = m.ManifoldMixup(twin, ["0"])
    assert is_loss_of(twin.mixup, twin(X), twin.mixup.mix)


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
    """Autograd numbers its nodes per thread: two forwards can have the same numbers."""
    model = Checkpointed()
    mixup = m.ManifoldMixup(model, ["a"])
    if side == "before":  # this thread's numbers run ahead of the other's
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


def test_two_threads_at_once():
    model, mixup = make(["0", "1", "3"])

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


def test_reentrant_recomputation_that_cannot_be_told_raises():
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


def test_nothing_is_kept_longer_than_the_graph():
    model, mixup = make()
    kept = []
    for _ in range(100):
        z = model(X)
        kept.append(weakref.ref(mixup.mix.perm))
        mixup.loss(z, Y).backward()
    gc.collect()
    assert sum(ref() is not None for ref in kept[:-20]) == 0
    assert len(mixup._mixing._forwards._storages) < 40


@pytest.mark.parametrize("value", [None, [1.0], {"logits": X}, (X, X), 1.0])
def test_logits_that_are_no_tensor(value):
    model, mixup = make()
    model(X)
    for call in (mixup.loss, mixup.accuracy):
        with pytest.raises(TypeError, match="logits must be a Tensor"):
            call(value, Y)
