"""Training in eager mode: the draws, the gradients and the loss."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

import mmix_fast as m
from benchmarks.models import MLP, Encoder, PreActResNet18
from tests.manifold.models import make


def gradients(model):
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("kind", [MLP, PreActResNet18, Encoder])
@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients_are_bit_identical_to_hand_written_mixing(backend, kind, per_sample):
    model, x, y = make(kind)
    twin = copy.deepcopy(model)
    mixup = m.ManifoldMixup(model, kind.layers, per_sample=per_sample)
    before = x.clone()
    for layer in kind.layers:
        model.zero_grad(), twin.zero_grad()
        while True:  # until this layer is drawn
            state = copy.deepcopy(model.state_dict())
            z = model(x)
            if mixup.layer == layer:
                break
            model.load_state_dict(state)
        mixup.loss(z, y).backward()
        perm, lam = mixup.mix
        if per_sample:
            assert lam.shape == (6,)
            shape = {MLP: 2, PreActResNet18: 4, Encoder: 3}[kind]
            lam = lam.reshape([-1] + [1] * (shape - 1))
        hand = twin.by_hand(x, layer, (perm, lam))
        assert torch.equal(z, hand), layer
        mixup.mix.cross_entropy(hand, y).backward()
        for a, b in zip(gradients(model), gradients(twin), strict=True):
            assert torch.equal(a, b), layer
        for a, b in zip(model.buffers(), twin.buffers(), strict=True):
            assert torch.equal(a, b), layer
        if not per_sample:
            want = lam * F.cross_entropy(z, y) + (1 - lam) * F.cross_entropy(z, y[perm])
            torch.testing.assert_close(mixup.loss(z, y), want)
    assert torch.equal(x, before)


def test_layers_and_prob_are_drawn_uniformly():
    model, x, y = make(MLP)
    mixup = m.ManifoldMixup(model, ["", "1"], prob=0.5)
    counts = Counter()
    for _ in range(800):
        z = model(x)
        counts[mixup.layer] += 1
        if mixup.layer is None:
            assert mixup.mix is None
            torch.testing.assert_close(mixup.loss(z, y), F.cross_entropy(z, y))
    # 6 standard deviations of binomial counts
    assert abs(counts[None] - 400) < 85 and abs(counts[""] - 200) < 74, counts
    assert abs(counts["1"] - 200) < 74


def test_draws_come_from_the_host_generators():
    model, x, _ = make(MLP)

    def draws(mixup):
        out = []
        for _ in range(6):
            model(x)
            out.append((mixup.layer, mixup.mix and mixup.mix.lam.item()))
        mixup.close()
        return out

    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append(draws(m.ManifoldMixup(model, MLP.layers, prob=0.7)))
    assert runs[0] == runs[1] and len(set(runs[0])) > 1
    runs = []
    for seed in (1, 2):  # the default generator is not used
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        generator = torch.Generator().manual_seed(3)
        runs.append(draws(m.ManifoldMixup(model, MLP.layers, prob=0.7, generator=generator)))
        assert torch.equal(torch.get_rng_state(), state)
    assert runs[0] == runs[1]


def test_nothing_is_mixed_in_eval_or_when_disabled_or_closed():
    model, x, y = make(MLP)
    with m.ManifoldMixup(model, ["1"]) as mixup:
        model.eval()
        plain = model(x)
        assert mixup.layer is None and mixup.mix is None
        torch.testing.assert_close(mixup.loss(plain, y), F.cross_entropy(plain, y))
        assert mixup.accuracy(plain, y) == (plain.argmax(1) == y).float().mean()
        model.train()
        assert not torch.equal(model(x), plain) and mixup.layer == "1"
        model.eval()  # the loss of any logits is plain now, for example of an averaged copy's
        torch.testing.assert_close(mixup.loss(plain, y), F.cross_entropy(plain, y))
        model.train()
        mixup.enabled = False
        assert torch.equal(model(x), plain) and mixup.layer is None
        mixup.enabled = True
        model(x)
        assert mixup.layer == "1"
    assert mixup.layer is None and mixup.mix is None
    assert torch.equal(model(x), plain)
    assert not model._forward_hooks and not model[1]._forward_hooks
    torch.testing.assert_close(mixup.loss(plain, y), F.cross_entropy(plain, y))


@pytest.mark.parametrize("mixed", [True, False])
def test_loss_takes_every_option(backend, mixed):
    model, x, y = make(MLP)
    mixup = m.ManifoldMixup(model, ["1"])
    model.train(mixed)
    options = {"weight": torch.rand(5), "label_smoothing": 0.1, "reduction": "none", "z_loss": 0.1}
    options |= {"softcap": 5.0, "ignore_index": 1, "inplace_backward": True}
    z = model(x)
    mix = mixup.mix or m.Mix.identity(6)
    want = m.mixed_cross_entropy(z, y, *mix, **options)
    torch.testing.assert_close(mixup.loss(z, y, **options), want)
    soft = torch.rand(6, 5)
    want = m.mixed_cross_entropy(z, soft, *mix)
    torch.testing.assert_close(mixup.loss(z, soft), want)
    assert 0 <= mixup.accuracy(z, y) <= 1
    torch.testing.assert_close(mixup.accuracy(z, y), mix.accuracy(z, y))


def test_same_losses_as_eager_pytorch_for_50_steps():
    torch.manual_seed(0)
    model, x, _ = make(MLP)
    twin = copy.deepcopy(model)
    mixup = m.ManifoldMixup(model, MLP.layers, alpha=1.0)
    data = [(torch.randn(32, 16), torch.randint(0, 5, (32,))) for _ in range(50)]
    optimizers = [torch.optim.SGD(n.parameters(), 0.05, momentum=0.9) for n in (model, twin)]
    for x, y in data:
        loss = mixup.loss(model(x), y)
        perm, lam = mixup.mix
        z = twin.by_hand(x, mixup.layer, mixup.mix)
        want = lam * F.cross_entropy(z, y) + (1 - lam) * F.cross_entropy(z, y[perm])
        torch.testing.assert_close(loss, want, rtol=1e-6, atol=0)
        for value, optimizer in zip((loss, want), optimizers, strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()


def test_autocast_to_bfloat16():
    model, x, y = make(PreActResNet18)
    mixup = m.ManifoldMixup(model, ["", "layer1", "layer2"])
    for layer in mixup.layers:
        while True:
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                z = model(x)
                loss = mixup.loss(z, y)
            if mixup.layer == layer:
                break
        assert z.dtype == torch.bfloat16 and loss.dtype == torch.float32
        loss.backward()
        twin = copy.deepcopy(model)
        twin.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            hand = twin.by_hand(x, layer, mixup.mix)
        assert torch.equal(hand, z)
        mixup.mix.cross_entropy(hand, y).backward()
        for a, b in zip(gradients(model), gradients(twin), strict=True):
            assert torch.equal(a, b), layer
