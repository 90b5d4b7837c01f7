"""mixup.binary_cross_entropy: the draws and the rules of mixup.loss."""

import pytest
import torch
import torch.nn.functional as F

import mmix_fast as m
from tests.manifold.models import X, Y, mixed_mlp

HOT = (torch.rand(6, 5) > 0.5).to(torch.uint8)
OPTIONS = {
    "weight": torch.rand(5),
    "pos_weight": torch.rand(5),
    "label_smoothing": 0.1,
    "reduction": "batchmean",
    "target_threshold": 0.4,
    "inplace_backward": True,
}
bce = F.binary_cross_entropy_with_logits


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["none", "every"])
@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("target", [Y, HOT, HOT.bool(), HOT.double()], ids=lambda t: str(t.dtype))
def test_every_option_mixed_and_not(backend, options, mixed, target):
    model, mixup = mixed_mlp(per_sample=True)
    model.train(mixed)
    z = model(X)
    mix = mixup.mix or m.Mix.identity(6)
    got = mixup.binary_cross_entropy(z, target, **options)
    torch.testing.assert_close(got, m.mixed_binary_cross_entropy(z, target, *mix, **options))
    torch.testing.assert_close(got, mix.binary_cross_entropy(z, target, **options))
    if not options:
        q = target.double() if target.ndim > 1 else F.one_hot(target, 5).double()
        lam = mix.lam.reshape(-1, 1) if mixed else 1.0
        want = bce(z.double(), lam * q + (1 - lam) * q[mix.perm])
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


def test_losses_in_any_order(backend):
    model, mixup = mixed_mlp(["", "1", "3"])
    made = []
    for _ in range(3):
        made.append((model(X), mixup.mix))
        with torch.no_grad():
            model(X)
    for k in (1, 0, 2, 1):
        z, draw = made[k]
        want = draw.binary_cross_entropy(z, HOT)
        assert torch.equal(mixup.binary_cross_entropy(z / 1, HOT), want)
        # Both losses of one forward take the same draw.
        torch.testing.assert_close(mixup.loss(z, Y), draw.cross_entropy(z, Y))
    gradient = torch.autograd.grad(mixup.binary_cross_entropy(made[0][0], HOT), model[0].weight)[0]
    assert gradient.isfinite().all() and gradient.any()


def test_plain_where_nothing_is_mixed():
    model, mixup = mixed_mlp()
    with pytest.raises(RuntimeError, match="forward"):
        mixup.binary_cross_entropy(torch.randn(6, 5), HOT)
    mixup.enabled = False
    z = model(X)
    torch.testing.assert_close(mixup.binary_cross_entropy(z, HOT), bce(z, HOT.float()))
    mixup.close()
    z = model(X)
    torch.testing.assert_close(mixup.binary_cross_entropy(z, HOT), bce(z, HOT.float()))


def test_logits_that_cannot_be_told():
    model, mixup = mixed_mlp()
    a, b = model(X), model(X)
    for logits in (torch.cat((a, b)), model.forward(X)):
        with pytest.raises((RuntimeError, ValueError)) as of_loss:
            mixup.loss(logits, Y.repeat(len(logits) // 6))
        with pytest.raises(of_loss.type) as of_binary:
            mixup.binary_cross_entropy(logits, HOT.repeat(len(logits) // 6, 1))
        assert str(of_loss.value) == str(of_binary.value)


def test_in_a_compiled_step(backend):
    model, mixup = mixed_mlp()
    torch._dynamo.reset()
    step = torch.compile(
        lambda x, t: mixup.binary_cross_entropy(model(x), t), fullgraph=True, backend="aot_eager"
    )
    for hot in (HOT, 1 - HOT):
        loss = step(X, hot)
        loss.backward()
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())
