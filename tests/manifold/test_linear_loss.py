"""mixup.linear_loss: the draws and the rules of mixup.loss, for a model without its head."""

import pytest
import torch
from torch import nn

import mmix_fast as m
from tests.manifold.models import X, Y, mixed_mlp


def headed():
    model, mixup = mixed_mlp()
    with torch.no_grad():
        features = model(X).shape[1]
    return model, mixup, nn.Linear(features, 7)


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_loss_of_the_heads_logits(backend, mixed, bias):
    model, mixup, head = headed()
    if not bias:
        head.register_parameter("bias", None)
    model.train(mixed)
    features = model(X)
    options = {"label_smoothing": 0.1, "reduction": "sum"}
    want = mixup.loss(head(features), Y, **options)
    got = mixup.linear_loss(features, head, Y, chunk_size=2, **options)
    torch.testing.assert_close(got, want)
    leaves = [*model.parameters(), *head.parameters()]
    of_got = torch.autograd.grad(got, leaves, retain_graph=True)
    for gradient, truth in zip(of_got, torch.autograd.grad(want, leaves), strict=True):
        torch.testing.assert_close(gradient, truth)


def test_the_draw_is_that_of_the_forward_that_made_the_features():
    model, mixup, head = headed()
    made = []
    for _ in range(3):
        made.append((model(X), mixup.mix))
        with torch.no_grad():
            model(X)
    for k in (1, 0, 2):
        features, draw = made[k]
        want = draw.cross_entropy(head(features), Y)
        torch.testing.assert_close(mixup.linear_loss(features / 1, head, Y), want)
        torch.testing.assert_close(draw.linear_loss(features, head, Y), want)
    with pytest.raises(RuntimeError):
        mixup.linear_loss(model.forward(X), head, Y)


def test_what_is_refused():
    model, mixup, head = headed()
    features = model(X)
    with pytest.raises(TypeError, match=r"head must be an nn\.Linear, got"):
        mixup.linear_loss(features, head.weight, Y)
    with pytest.raises(TypeError, match="features must be a Tensor, got list"):
        mixup.linear_loss([features], head, Y)
    with pytest.raises(ValueError, match="features must have the batch size 6"):
        mixup.linear_loss(features[:3], head, Y[:3])


def test_in_a_compiled_step(backend):
    model, mixup, head = headed()
    torch._dynamo.reset()
    step = torch.compile(
        lambda x, y: mixup.linear_loss(model(x), head, y), fullgraph=True, backend="aot_eager"
    )
    for _ in range(2):
        loss = step(X, Y)
        loss.backward()
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in head.parameters())


def test_identity_is_the_plain_loss(backend):
    head = nn.Linear(5, 7)
    x, y = torch.randn(6, 5), torch.randint(0, 7, (6,))
    got = m.Mix.identity(6).linear_loss(x, head, y)
    torch.testing.assert_close(got, nn.functional.cross_entropy(head(x), y))
