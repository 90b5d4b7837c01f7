"""torch.compile: values and gradients; opcheck of the registered ops."""

import pytest
import torch

import mmix_fast as m

PERM = torch.tensor([1, 2, 0])


def test_at_most_two_graphs_for_any_lam():
    torch._dynamo.reset()
    perm, y = torch.randperm(6), torch.randint(0, 5, (6,))
    frames = []

    def count(graph, inputs):
        frames.append(graph)
        return graph.forward

    def step(x, lam):
        h = m.mix_(x * 2, perm, lam)
        return m.mixed_cross_entropy(m.mix(h, perm, lam), y, perm, lam)

    compiled = torch.compile(step, fullgraph=True, backend=count)
    for lam in (0.1, 0.2, 0.35, 0.5, 0.77, 0.9):
        x = torch.randn(6, 5, requires_grad=True)
        got, want = compiled(x, lam), step(x, lam)
        torch.testing.assert_close(got, want)
    assert len(frames) <= 2


def test_gradients_with_inductor():
    torch._dynamo.reset()
    perm, y = torch.randperm(6), torch.randint(0, 5, (6,))

    def made(x, lam):
        return m.mixed_cross_entropy(m.mix_(x * 2, perm, lam), y, perm, lam)

    def given(x, lam):
        return m.mix_(x, perm, lam).sin().sum()

    lam = torch.tensor(0.3)
    for f in (made, given):
        compiled = torch.compile(f, fullgraph=True)
        x = torch.randn(6, 5, requires_grad=True)
        want = torch.autograd.grad(f(x * 1, lam), x)
        got = torch.autograd.grad(compiled(x * 1, lam), x)
        torch.testing.assert_close(got, want)


def test_opcheck():
    op = torch.ops.mmix_fast
    x, lam, y = torch.randn(3, 4), torch.tensor(0.3), torch.tensor([0, 1, 3])
    tail = (y, PERM, None, lam, None, None, -100, "mean", 0.1, 0.0, 0.0, 0, 0)
    _, stats, gradient = op.cross_entropy(x, *tail, True)
    targets = (4, 0.1, -100, torch.float32)
    torch.library.opcheck(op.mix.default, (x, PERM, lam, 0, False))
    torch.library.opcheck(op.mix_.default, (x.clone(), PERM, lam, 0))
    torch.library.opcheck(op.mix_other.default, (x, x.clone(), PERM, lam, 0))
    torch.library.opcheck(op.mix_other_.default, (x.clone(), x, None, lam, 0))
    torch.library.opcheck(op.sum_rows_.default, (x.clone(), x, lam, PERM, torch.arange(4), 0))
    torch.library.opcheck(op.mix_targets.default, (y, None, lam, *targets, y.flip(0)))
    torch.library.opcheck(op.mix_targets.default, (y, PERM, lam, *targets))
    torch.library.opcheck(op.mix_batch_.default, (x.clone(), y, PERM, lam, *targets))
    up = torch.tensor(2.0)
    for upstream in (None, 1.0):
        torch.library.opcheck(op.cross_entropy.default, (x, *tail, upstream))
    torch.library.opcheck(op.cross_entropy_backward.default, (up, stats, x, *tail))
    torch.library.opcheck(op.cross_entropy_backward_.default, (up, stats, x.clone(), *tail))
    torch.library.opcheck(op.cross_entropy_rescale_.default, (gradient, up, stats, x, *tail))


@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_opcheck_of_the_binary_cross_entropy(reduction):
    op = torch.ops.mmix_fast
    images = torch.randn(3, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    for x in (torch.randn(3, 4), images):
        t, w = (torch.rand(x.shape) < 0.5).to(torch.uint8), torch.rand(4)
        tail = (t, PERM, None, torch.tensor(0.3), w, None, reduction, 0.1, 0.4)
        for upstream in (None, 1.0) if reduction != "none" else (None,):
            torch.library.opcheck(op.binary_cross_entropy.default, (x, *tail, upstream))
        up = torch.rand_like(x) if reduction == "none" else torch.tensor(2.0)
        torch.library.opcheck(op.binary_cross_entropy_backward.default, (up, x, *tail))
        torch.library.opcheck(op.binary_cross_entropy_backward_.default, (up, x.clone(), *tail))
        rescaled = torch.zeros_like(x), up, x, *tail
        torch.library.opcheck(op.binary_cross_entropy_rescale_.default, rescaled)


def test_mix_batch_and_targets_compile():
    torch._dynamo.reset()
    y = torch.tensor([0, 1, 1])

    def step(x, lam):
        return m.mix_batch_(x * 1, y, PERM, lam, num_classes=2)

    x, lam = torch.randn(3, 4), torch.tensor(0.3)
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(x, lam), step(x, lam))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_reference_under_compile(reduction):
    torch._dynamo.reset()
    perm, y = torch.randperm(6), torch.randint(0, 5, (6,))

    def step(x):
        h = m.mix(x, perm, 0.3)
        return m.mixed_cross_entropy(h, y, perm, 0.3, reduction=reduction).sum()

    x = torch.randn(6, 5, requires_grad=True)
    with m.use_backend("reference"):
        want = torch.autograd.grad(step(x), x)
        got = torch.autograd.grad(torch.compile(step, fullgraph=True)(x), x)
    torch.testing.assert_close(got, want)
