"""ManifoldMixup and torch.compile on a GPU."""

import copy

import pytest
import torch

import mmix_fast as m
from benchmarks.models import MLP, Encoder, PreActResNet18
from tests.manifold.models import make
from tests.manifold.test_compile import HOWS, check

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", [MLP, Encoder])
@pytest.mark.parametrize("options", [{}, {"per_sample": True}, {"inplace": False}], ids=str)
def test_steps_equal_those_by_hand(kind, options):
    model, x, y = make(kind)
    twin = copy.deepcopy(model)
    mixup = m.ManifoldMixup(model, kind.layers, **options)
    for _ in range(6):
        model.zero_grad(), twin.zero_grad()
        loss = mixup.loss(model(x), y)
        loss.backward()
        want = mixup.mix.cross_entropy(twin.by_hand(x, mixup.layer, mixup.mix), y)
        want.backward()
        torch.testing.assert_close(loss, want)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_a_network_of_images_under_autocast():
    model, x, y = make(PreActResNet18)
    model, x = (t.to(memory_format=torch.channels_last) for t in (model, x))
    mixup = m.ManifoldMixup(model, PreActResNet18.layers)
    seen = set()
    for _ in range(8):
        model.zero_grad()
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            logits = model(x)
            loss = mixup.loss(logits, y)
        loss.backward()
        seen.add(mixup.layer)
        torch.testing.assert_close(loss, mixup.mix.cross_entropy(logits.float(), y))
        assert loss.dtype == torch.float32
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert len(seen) > 1


@pytest.mark.parametrize("how", HOWS)
def test_compiled_models(how):
    check(MLP, how, "aot_eager", 8, prob=0.7)


def test_a_compiled_step_with_inductor():
    check(MLP, "step", "inductor", 8)


def ops(x, z, y, perm, lam):
    """Every op, in one graph."""
    h = m.mix(m.mix_(x * 2, perm, lam), perm, lam)
    _, soft = m.mix_batch_(x * 1, y, perm, lam, num_classes=z.shape[1])
    loss = m.mixed_cross_entropy(z, y, perm, lam) + m.mixed_cross_entropy(z, soft, perm, lam)
    return h.sin().sum() + loss


def test_compiled_ops_have_the_values_and_gradients_of_eager_ones():
    x, z = torch.randn(16, 40, requires_grad=True), torch.randn(16, 10, requires_grad=True)
    y, perm = torch.randint(0, 10, (16,)), torch.randperm(16)
    compiled = torch.compile(ops, fullgraph=True)
    for lam in (torch.tensor(0.3), torch.rand(16)):
        got, want = (f(x, z, y, perm, lam) for f in (compiled, ops))
        torch.testing.assert_close(got, want)
        for a, b in zip(*(torch.autograd.grad(f, (x, z)) for f in (got, want)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_compiled_cutmix():
    x, perm = torch.randn(8, 3, 9, 16), torch.randperm(8)
    step = torch.compile(lambda x, box: m.cutmix_(x * 1, perm, box), fullgraph=True)
    for box in (torch.tensor([0, 2, 1, 4]), torch.tensor([1, 3, 0, 5])):
        (out, lam), (want, wanted) = step(x, box), m.cutmix_(x.clone(), perm, box)
        assert torch.equal(out, want) and torch.equal(lam, wanted)
