"""The loss and its gradients with every option, against float64; bad labels and a bad perm."""

import pytest
import torch

from mmix_fast import reference
from mmix_fast.arithmetic import compute_dtype
from mmix_fast.triton import launch, loss_launch
from tests.support.cases import DTYPES, TOLERANCE
from tests.triton_interpreter.loss_cases import SHAPES, cells, draw

OPS = torch.ops.mmix_fast_triton


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "probabilities"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_option(size, shape, dtype, labels):
    acc, some = compute_dtype(dtype), cells(shape, dtype, labels, size, 3)
    for (eps, z_loss, cap), reduction, per_sample, weighted in some:
        z, y, perm, partner, lam, w = draw(shape, dtype, labels, per_sample, weighted)
        z64 = z.double().requires_grad_()
        want = reference.mixed_cross_entropy(
            z64,
            y if labels else y.double(),
            perm,
            lam.double(),
            target_b=partner if labels or partner is None else partner.double(),
            weight=None if w is None else w.double(),
            reduction=reduction,
            label_smoothing=eps,
            z_loss=z_loss,
            softcap=cap or None,
        )
        inputs = (y, perm, partner, lam, w, None, -100, reduction, eps, z_loss, cap, 0, 0)
        loss, stats, gradient = OPS.cross_entropy(z, *inputs, 1.0)
        near, tol = TOLERANCE[acc], TOLERANCE[dtype]
        torch.testing.assert_close(loss.double(), want.detach(), rtol=near, atol=near)

        def close(got, upstream, want=want, z64=z64, tol=tol):
            (truth,) = torch.autograd.grad(want, z64, upstream.double(), retain_graph=True)
            torch.testing.assert_close(got.double(), truth, rtol=tol, atol=tol)

        close(gradient, torch.ones_like(loss))
        if reduction != "none":
            over = z.clone()
            assert torch.equal(OPS.cross_entropy_(over, *inputs), loss)
            assert torch.equal(over, gradient)
        upstream = torch.randn_like(loss)
        if reduction == "none":
            upstream.view(-1)[:2] = torch.tensor([1, 0])
        back = OPS.cross_entropy_backward(upstream, stats, z, *inputs)
        close(back, upstream)
        first = gradient.clone()
        OPS.cross_entropy_rescale_(gradient, torch.ones_like(loss), stats, z, *inputs)
        assert torch.equal(gradient, first)  # an upstream of 1 changes nothing
        OPS.cross_entropy_rescale_(gradient, upstream, stats, z, *inputs)
        close(gradient, upstream)
        OPS.cross_entropy_backward_(upstream, stats, z, *inputs)
        assert torch.equal(z, back)


@pytest.mark.parametrize("shape", [(6, 11), (6, 4, 3)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_bad_labels_and_perm_poison_their_rows(size, shape, reduction):
    rows = shape[:1] + shape[2:]
    for bad_perm in (False, True):
        y, perm = torch.randint(0, shape[1], rows), torch.tensor([1, 2, 0, 4, 5, 3])
        lost = torch.zeros(6, dtype=torch.bool)
        if bad_perm:
            perm[4], perm[5] = 2**40, 2  # 2 occurs twice now
            lost[[1, 4, 5]] = True
        else:
            y[0], y[4] = shape[1], -7
            lost[[0, 2, 4, 3]] = True  # these rows, and the rows whose partners they are
        fence = torch.randn(10, *shape[1:])
        z = fence[2:-2]
        inputs = (
            y,
            perm,
            None,
            torch.tensor(0.3),
            None,
            None,
            -100,
            reduction,
            0.1,
            0.0,
            0.0,
            0,
            0,
        )
        loss, stats, gradient = OPS.cross_entropy(z, *inputs, 1.0)
        lost_rows = lost.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
        assert torch.equal(gradient.isnan(), lost_rows)
        if reduction == "none":
            assert torch.equal(loss.isnan(), lost_rows[:, 0])
        else:
            assert loss.isnan()
        ends = fence[:2].clone(), fence[-2:].clone()
        OPS.cross_entropy_backward_(torch.ones_like(loss), stats, z, *inputs)
        assert torch.equal(z.isnan(), lost_rows)
        assert torch.equal(fence[:2], ends[0]) and torch.equal(fence[-2:], ends[1])


def test_layouts_that_are_not_contiguous(size):
    """Inner dimensions that cannot be merged, an expanded batch, row strides larger than C."""
    y, perm, lam = torch.randint(0, 4, (5, 3, 2)), torch.randperm(5), torch.rand(5)
    made = {
        "plain": torch.randn(5, 4, 3, 2),
        "channels_last": torch.randn(5, 3, 2, 4).permute(0, 3, 1, 2),
        "transposed": torch.randn(5, 4, 2, 3).transpose(2, 3),
        "sliced": torch.randn(5, 4, 3, 4)[..., ::2],
        "expanded": torch.randn(1, 4, 3, 2).expand(5, 4, 3, 2),
    }
    inputs = (y, perm, None, lam, None, None, -100, "sum", 0.0, 0.0, 0.0, 0, 0)
    for name, z in made.items():
        plain = z.clone(memory_format=torch.contiguous_format)
        want, stats, gradient = OPS.cross_entropy(plain, *inputs, 1.0)
        loss, stats, got = OPS.cross_entropy(z, *inputs, 1.0)
        torch.testing.assert_close(loss, want, msg=name)
        torch.testing.assert_close(got, gradient, msg=name)
        if name != "expanded":
            OPS.cross_entropy_backward_(torch.ones(()), stats, z, *inputs)
            torch.testing.assert_close(z, gradient, msg=name)
            z.copy_(plain)
            torch.testing.assert_close(OPS.cross_entropy_(z, *inputs), want, msg=name)
            torch.testing.assert_close(z, gradient, msg=name)


def test_the_divisor_of_a_mean_over_many_rows(monkeypatch):
    monkeypatch.setattr(launch, "KNOWN_ROWS", 8)
    monkeypatch.setattr(launch, "COUNT_BLOCK", 8)
    monkeypatch.setattr(loss_launch, "PARTIAL_SUMS", 4)
    z, y, perm = torch.randn(101, 3), torch.randint(-1, 3, (101,)), torch.randperm(101)
    w, lam = torch.rand(3), torch.tensor(0.3)
    inputs = (y, perm, None, lam, w, None, -1, "mean", 0.0, 0.1, 0.0, 0, 0)
    want = reference.mixed_cross_entropy(z, y, perm, 0.3, weight=w, ignore_index=-1, z_loss=0.1)
    torch.testing.assert_close(OPS.cross_entropy(z, *inputs, None)[0], want)
