"""The binary cross-entropy and its gradients with every option, against float64; bad labels."""

from itertools import product

import pytest
import torch

from mmix_fast import reference
from mmix_fast.arithmetic import compute_dtype
from tests.support.cases import DTYPES, TOLERANCE

OPS = torch.ops.mmix_fast_triton
SHAPES = [(6, 11), (4, 3, 2, 2), (3, 40)]
KINDS = ("labels", "bytes", "floats")
REDUCTIONS = ("mean", "batchmean", "sum", "none")


def target_of(kind, shape, dtype=torch.float32):
    if kind == "labels":
        return torch.randint(0, shape[1], shape[:1] + shape[2:])
    if kind == "bytes":
        return (torch.rand(shape) < 0.3).to(torch.uint8)
    return torch.rand(shape).to(dtype)


def truth(z, inputs):
    """(loss, its function of the upstream that gives the gradient) of the reference in float64."""
    y, perm, other, lam, w, pos, reduction, eps, threshold = inputs
    wide = [t if t is None or t.dtype == torch.int64 else t.double() for t in (y, other, w, pos)]
    y, other, w, pos = wide
    z = z.double().requires_grad_()
    loss = reference.mixed_binary_cross_entropy(
        z, y, perm, lam.double(), target_b=other, weight=w, pos_weight=pos, reduction=reduction,
        label_smoothing=eps, target_threshold=threshold,
    )  # fmt: skip
    return loss.detach(), lambda up: torch.autograd.grad(loss, z, up.double(), retain_graph=True)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_option(size, shape, dtype, kind):
    acc = compute_dtype(dtype)
    near, tol = TOLERANCE[acc], TOLERANCE[dtype]
    # One or two cells of the grid for each case, which takes 0.1 s a launch; together the small
    # cases run all.
    grid = list(product([0.0, 0.1], [None, 0.4], REDUCTIONS, [False, True], [False, True]))
    turn = 12 * SHAPES.index(shape) + 3 * DTYPES.index(dtype) + KINDS.index(kind)
    cells = grid[turn % 32 :: 32] if size == "small" else [grid[(7 * turn + 5) % 64]]
    for eps, threshold, reduction, per_sample, weighted in cells:
        z = (3 * torch.randn(shape)).to(dtype)
        # Targets of another dtype than the logits.
        y, other = (target_of(kind, shape, DTYPES[DTYPES.index(dtype) - 2]) for _ in "ab")
        perm, partner = (None, other) if weighted else (torch.randperm(shape[0]), None)
        lam = torch.rand(shape[0] if per_sample else (), dtype=acc)
        if per_sample:
            lam[0], lam[1] = 0, 1
        w, pos = (torch.rand(2, shape[1]).to(dtype) * 3) if weighted else (None, None)
        inputs = (y, perm, partner, lam, w, pos, reduction, eps, threshold)
        want, gradient_for = truth(z, inputs)
        loss, gradient = OPS.binary_cross_entropy(z, *inputs, 1.0)
        assert loss.dtype == acc and gradient.dtype == dtype
        torch.testing.assert_close(loss.double(), want, rtol=near, atol=near)

        def close(got, upstream, gradient_for=gradient_for, tol=tol):
            torch.testing.assert_close(got.double(), gradient_for(upstream), rtol=tol, atol=tol)

        close(gradient, torch.ones_like(loss))
        upstream = torch.randn_like(loss)
        if reduction == "none":
            upstream.view(-1)[:2] = torch.tensor([1, 0])
            upstream = upstream[..., :1].expand(shape) if per_sample else upstream
        back = OPS.binary_cross_entropy_backward(upstream, z, *inputs)
        close(back, upstream)
        first = gradient.clone()
        OPS.binary_cross_entropy_rescale_(gradient, torch.ones_like(loss), z, *inputs)
        assert torch.equal(gradient, first)  # an upstream of 1 changes nothing
        gradient[(upstream == 1).expand(shape)] = 7  # nor does it where it is not 1 everywhere
        OPS.binary_cross_entropy_rescale_(gradient, upstream, z, *inputs)
        kept = (upstream == 1).expand(shape)
        assert (gradient[kept] == 7).all()
        close(torch.where(kept, back, gradient), upstream)
        OPS.binary_cross_entropy_backward_(upstream, z, *inputs)
        assert torch.equal(z, back)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_small_losses_and_gradients_keep_their_digits(dtype):
    """log(1 + e) would lose a small e; sigmoid(z) - 1 would lose a small 1 - sigmoid(z)."""
    far = torch.tensor([0.0, 0.3, 1.0, 5.0, 20.0, 40.0, 80.0])
    z = torch.cat([far, -far]).to(dtype)[None]
    y = (z > 0).to(torch.uint8)
    # The exponential of -80 in float32: half an ulp of its argument in base 2 is 4e-6 of it.
    rtol = 6e-6 if dtype == torch.float32 else 1e-14
    inputs = (y, torch.tensor([0]), None, torch.tensor(0.3, dtype=dtype), None, None, "none", 0.0)
    want, gradient_for = truth(z, (*inputs, None))
    loss, _ = OPS.binary_cross_entropy(z, *inputs, None, None)
    torch.testing.assert_close(loss.double(), want, rtol=rtol, atol=0)
    one = torch.ones_like(z)
    got = OPS.binary_cross_entropy_backward(one, z, *inputs, None)
    torch.testing.assert_close(got.double(), gradient_for(one), rtol=rtol, atol=0)
    z = torch.full((4, 9), -20.0, dtype=dtype)
    inputs = (torch.zeros(4, 9), torch.arange(4), None, inputs[3], None, None, "mean", 0.0, None)
    loss, gradient = OPS.binary_cross_entropy(z, *inputs, 1.0)
    want, gradient_for = truth(z, inputs)
    torch.testing.assert_close(loss.double(), want, rtol=rtol, atol=0)
    torch.testing.assert_close(
        gradient.double(), gradient_for(torch.ones_like(loss)), rtol=rtol, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["labels", "floats"])
def test_a_threshold_sees_the_bits_of_the_reference(dtype, kind):
    """At a threshold of t itself the target is 0, one ulp below it is 1."""
    shape, eps = (5, 7), 0.1
    y, perm, lam = target_of(kind, shape), torch.randperm(5), torch.rand(5, dtype=dtype)
    lam[0] = 0
    z = torch.zeros(shape, dtype=dtype)
    if kind == "labels":
        q = torch.full(shape, eps / 7, dtype=dtype)
        q.scatter_(1, y[:, None], 1 - eps + eps / 7)
    else:
        q = (1 - eps) * y.to(dtype) + eps / 2
    t = lam[:, None] * q + (1 - lam)[:, None] * q[perm]
    for at in t.unique()[2:6]:
        for threshold in (at, torch.nextafter(at, at - 1)):
            inputs = (y, perm, None, lam, None, None, "none", eps, float(threshold))
            got = OPS.binary_cross_entropy_backward(torch.ones_like(z), z, *inputs)
            assert torch.equal(got < 0, t > threshold)


@pytest.mark.parametrize("shape", [(6, 11), (6, 4, 3)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("threshold", [None, 0.5], ids=str)
def test_bad_labels_and_perm_poison_their_rows(size, shape, reduction, threshold):
    classes = shape[1]
    for bad, kind in product(("perm", "labels"), ("labels", "bytes")):
        y, perm = target_of(kind, shape), torch.tensor([1, 2, 0, 4, 5, 3])
        lost = torch.zeros(6, dtype=torch.bool)
        if bad == "perm":
            perm[4], perm[5] = 2**40, 2  # 2 occurs twice now
            lost[[1, 4, 5]] = True
        elif kind == "labels":
            y[0], y[4] = classes, -(2**33)
            lost[[0, 2, 4, 3]] = True  # these rows, and the rows whose partners they are
        else:
            continue
        fence = torch.randn(10, *shape[1:])
        z = fence[2:-2]
        # Also where nothing of the row counts: weights of 0, and lam that drops a bad label.
        w, lam = torch.zeros(classes), torch.tensor([1.0, 0, 0.3, 0, 1, 0.5])
        inputs = (y, perm, None, lam, w, None, reduction, 0.1, threshold)
        loss, gradient = OPS.binary_cross_entropy(z, *inputs, 1.0)
        lost_rows = lost.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
        assert torch.equal(gradient.isnan(), lost_rows)
        assert torch.equal(loss.isnan(), lost_rows) if reduction == "none" else loss.isnan()
        ends = fence[:2].clone(), fence[-2:].clone()
        OPS.binary_cross_entropy_backward_(torch.ones_like(loss), z, *inputs)
        assert torch.equal(z.isnan(), lost_rows) and (z[~lost_rows] == 0).all()
        assert torch.equal(fence[:2], ends[0]) and torch.equal(fence[-2:], ends[1])


def test_absent_terms(size):
    """A coefficient of exactly 0 (1-t, t, pos_weight*t, weight) hides inf and NaN."""
    inf, nan = float("inf"), float("nan")
    y = torch.tensor([[0.0, 1, 1, 1, nan, 0], [0, 1, nan, 1, inf, 1]])
    z = torch.tensor([[-inf, inf, nan, nan, 1, 3], [nan, 2, nan, inf, 0, inf]])
    w, pos = torch.tensor([1.0, 1, 0, 1, 0, 1]), torch.tensor([1.0, 1, 1, 0, 1, 1])
    lam = torch.tensor([1.0, 1.0])
    inputs = (y, torch.tensor([1, 0]), None, lam, w, pos, "none", 0.0, None)
    loss, gradient = OPS.binary_cross_entropy(z, *inputs, 1.0)
    soft3, soft2 = torch.nn.functional.softplus(torch.tensor([3.0, -2.0]))
    want = torch.tensor([[0, 0, 0, 0, 0, soft3], [nan, soft2, 0, 0, 0, 0]])
    torch.testing.assert_close(loss, want, equal_nan=True)
    assert torch.equal(gradient.isnan(), want.isnan())
    assert (gradient[:, 2:5] == 0).all() and (gradient[0, :2] == 0).all()
    z, y = torch.tensor([[inf, -inf]]), torch.tensor([[0, 1]], dtype=torch.uint8)
    inputs = (y, torch.tensor([0]), None, torch.tensor(0.5), None, None, "none", 0.0, None)
    loss, gradient = OPS.binary_cross_entropy(z, *inputs, 1.0)
    assert (loss == inf).all() and torch.equal(gradient, torch.tensor([[1.0, -1.0]]))


def test_layouts_that_are_not_contiguous():
    """Inner dimensions that cannot be merged, an expanded batch, row strides larger than C."""
    perm, lam = torch.randperm(5), torch.rand(5)
    made = {
        "plain": torch.randn(5, 4, 3, 2),
        "channels_last": torch.randn(5, 3, 2, 4).permute(0, 3, 1, 2),
        "transposed": torch.randn(5, 4, 2, 3).transpose(2, 3),
        "sliced": torch.randn(5, 4, 3, 4)[..., ::2],
        "expanded": torch.randn(1, 4, 3, 2).expand(5, 4, 3, 2),
    }
    targets = {
        "sum": (torch.randint(0, 4, (5, 3, 2)), torch.tensor(0.5)),
        "none": (
            torch.rand(5, 4, 2, 3).transpose(2, 3),
            torch.randn(5, 1, 3, 1).expand(5, 4, 3, 2),  # cannot be merged either
        ),
    }
    near = {"rtol": TOLERANCE[torch.float32], "atol": TOLERANCE[torch.float32]}
    for (name, z), (reduction, (y, upstream)) in product(made.items(), targets.items()):
        inputs = (y, perm, None, lam, None, None, reduction, 0.1, None)
        want, gradient_for = truth(z, inputs)
        loss, gradient = OPS.binary_cross_entropy(z, *inputs, 1.0)
        assert reduction == "sum" or loss.stride() == torch.empty_like(z).stride()
        torch.testing.assert_close(loss.double(), want, **near)
        ones = torch.ones_like(loss)
        torch.testing.assert_close(gradient.double(), gradient_for(ones), **near)
        if name != "expanded":
            OPS.binary_cross_entropy_backward_(upstream, z, *inputs)
            torch.testing.assert_close(z.double(), gradient_for(upstream), **near)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty(reduction):
    for shape in ((0, 3), (2, 3, 0)):
        z = torch.zeros(shape)
        y, perm = target_of("labels", shape), torch.arange(shape[0])
        inputs = (y, perm, None, torch.tensor(0.3), None, None, reduction, 0.0, None)
        loss, gradient = OPS.binary_cross_entropy(z, *inputs, 1.0)
        want, _ = truth(z, inputs)
        torch.testing.assert_close(loss.double(), want, equal_nan=True)
        assert gradient.shape == shape
        OPS.binary_cross_entropy_backward_(torch.ones_like(loss), z, *inputs)


def test_few_rows_of_many_classes_take_more_programs(monkeypatch):
    from mmix_fast.triton import binary_loss_launch as launch

    monkeypatch.setattr("mmix_fast.triton.loss_launch.TILE_BYTES", 64)
    monkeypatch.setattr("mmix_fast.triton.loss_launch.MIN_TILE_BYTES", 64)
    z, y, perm = torch.randn(2, 101), torch.tensor([100, 3]), torch.tensor([1, 0])
    inputs = (y, perm, None, torch.tensor(0.3), None, None, "mean", 0.0, None)
    want, gradient_for = truth(z, inputs)
    for many, programs in ((1, 2), (5, 6), (1000, 14)):
        monkeypatch.setattr(launch, "MANY_PROGRAMS", many)
        launches, parts = launch.binary_loss(z, inputs, forward=True)
        assert launches[-1].programs == parts.numel() == programs
        loss, gradient = OPS.binary_cross_entropy(z, *inputs, 1.0)
        torch.testing.assert_close(loss.double(), want)
        torch.testing.assert_close(gradient.double(), gradient_for(torch.ones(())))
