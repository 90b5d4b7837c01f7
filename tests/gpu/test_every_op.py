"""Every op, its options and layouts, on small inputs, against `reference` on the same device.

Small, so that compute-sanitizer (`make gpu`) checks every access in seconds. The batches of 1,030
samples take the ways of large ones. Few dtypes: each is a compilation of Triton, and tests/ops has
them all.
"""

import pytest
import torch

import mmix_fast as m
from tests.support.cases import TOLERANCE

pytestmark = pytest.mark.gpu
F32, BF16 = torch.float32, torch.bfloat16
MANY = 1030


def same(got, want, tolerance=0.0):
    got, want = (r if isinstance(r, tuple) else (r,) for r in (got, want))
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype and g.device == w.device
        torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance, equal_nan=True)


def with_reference(call, *tensors):
    """What the call gives on copies of the tensors."""
    with m.use_backend("reference"):
        return call(*(t.clone() for t in tensors))


LAYOUTS = {
    "aligned": lambda: torch.randn(16, 256),
    "unaligned": lambda: torch.randn(16, 77),
    "images": lambda: torch.randn(6, 3, 7, 8),
    "channels_last": lambda: torch.randn(6, 8, 5, 4).contiguous(memory_format=torch.channels_last),
    "sliced": lambda: torch.randn(16, 64)[::2],
    "strided": lambda: torch.randn(7, 9, 6).transpose(1, 2),
    "many rows": lambda: torch.randn(MANY, 40),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_mixing_and_its_gradient(layout, dtype):
    x = LAYOUTS[layout]().to(dtype)
    perm, upstream = torch.randperm(len(x)), torch.randn_like(x)
    for lam in (0.3, torch.tensor(0.0), torch.rand(len(x))):
        want = with_reference(lambda x, lam=lam: m.mix(x, perm, lam), x)
        same(m.mix(x, perm, lam), want)
        same(m.mix_(x.clone(), perm, lam), want)

        def gradient(x, lam=lam):
            x.requires_grad_()
            return torch.autograd.grad(m.mix(x, perm, lam), x, upstream)[0]

        same(gradient(x.clone()), with_reference(gradient, x))


def test_mixing_along_another_dimension():
    x, perm, lam = torch.randn(5, 12, 9), torch.randperm(12), torch.rand(12)
    same(m.mix(x, perm, lam, dim=1), with_reference(lambda x: m.mix(x, perm, lam, dim=1), x))
    same(m.mix_(x.clone(), perm, lam, dim=1), m.mix(x, perm, lam, dim=1))


def test_the_gradient_to_lam():
    x, perm = torch.randn(16, 40), torch.randperm(16)
    for lam in (torch.tensor(0.3), torch.rand(16)):

        def gradient(x, lam):
            return torch.autograd.grad(m.mix(x, perm, lam.requires_grad_()).sin().sum(), lam)[0]

        same(gradient(x, lam.clone()), with_reference(gradient, x, lam), 1e-4)


@pytest.mark.parametrize("pairing", ["flip", "roll", "random", "no permutation"])
@pytest.mark.parametrize("batch", [1, 2, 33, MANY])
def test_pairings(pairing, batch):
    rows = torch.arange(batch)
    perm = {
        "flip": rows.flip(0),
        "roll": rows.roll(1),
        "random": torch.randperm(batch),
        "no permutation": rows // 2,
    }[pairing]
    x = torch.randn(batch, 40)
    if pairing == "no permutation":  # its rows are poisoned; no row is read that is not there
        out = m.mix_(x, perm, 0.3)
        assert out.shape == x.shape
    else:
        same(m.mix_(x.clone(), perm, 0.3), with_reference(lambda x: m.mix_(x, perm, 0.3), x))


IMAGES = {
    "contiguous": lambda: torch.randn(6, 3, 9, 16),
    "odd": lambda: torch.randn(5, 3, 7, 11),
    "channels_last": lambda: torch.randn(6, 4, 7, 9).contiguous(memory_format=torch.channels_last),
    "sliced": lambda: torch.randn(8, 3, 9, 14)[::2, 1:, ::3, ::2],
    "gray": lambda: torch.randn(5, 8, 4),
    "many": lambda: torch.randn(MANY, 1, 3, 4),
}


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("dtype", [F32, BF16, torch.uint8, torch.int16, torch.int64], ids=str)
def test_cutmix(images, dtype):
    x = (100 * IMAGES[images]()).to(dtype)
    batch, (height, width) = len(x), x.shape[-2:]
    perm = torch.randperm(batch)
    box = (1, height - 1, 1, width)
    lines, sides = (torch.randint(0, n + 1, (batch, 2)).sort(1).values for n in (height, width))
    each = torch.cat([lines, sides], 1)  # top, bottom, left, right
    for lam in (0.0, 0.3, torch.rand(batch)) if dtype.is_floating_point else (0.0,):
        for where in (box, torch.tensor(box), each):

            def cut(x, where=where, lam=lam):
                return m.cutmix_(x, perm, where, lam=lam)

            want = with_reference(cut, x)
            out, corrected = cut(x.clone())
            same(out, want[0])
            same(corrected, want[1], 1e-6)


@pytest.mark.parametrize("shape", [(6,), (6, 5), (MANY,)])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_soft_targets(shape, dtype):
    y, perm = torch.randint(0, 7, shape), torch.randperm(shape[0])
    y.view(-1)[0] = -100
    t = torch.rand(shape[0], 7, *shape[1:])
    for lam in (0.3, torch.rand(shape[0])):
        for eps in (0.0, 0.1):

            def soft(target, lam=lam, eps=eps):
                options = {"num_classes": 7, "label_smoothing": eps, "dtype": dtype}
                return m.mix_targets(target, perm, lam, **options)

            for target in (y, t):
                same(soft(target), with_reference(soft, target), TOLERANCE[dtype])


@pytest.mark.parametrize("batch", [6, 64, MANY])
@pytest.mark.parametrize("columns", [33, 128])
def test_a_batch_with_its_targets(batch, columns):
    x, y, perm = torch.randn(batch, columns), torch.randint(0, 7, (batch,)), torch.randperm(batch)
    for lam in (0.3, torch.rand(batch)):

        def both(x, lam=lam):
            return m.mix_batch_(x, y, perm, lam, num_classes=7, label_smoothing=0.1)

        want = with_reference(both, x)
        out, soft = both(x.clone())
        same(out, want[0])
        same(soft, want[1], 1e-6)


# name -> (shape of the logits, options)
LOSSES = {
    "10 classes": ((64, 10), {}),
    "100 classes": ((MANY, 100), {}),
    "1,000 classes": ((16, 1000), {}),
    "unaligned": ((16, 1001), {}),
    "long rows": ((5, 21841), {}),
    "the longest rows": ((2, 70001), {}),
    "segmentation": ((3, 21, 9, 7), {}),
    "sum": ((16, 100), {"reduction": "sum"}),
    "rows": ((16, 100), {"reduction": "none"}),
    "every option": ((16, 100), {"label_smoothing": 0.1, "z_loss": 1e-2, "softcap": 5.0}),
    "in place": ((16, 100), {"inplace_backward": True}),
}


def loss_and_gradient(z, y, perm, lam, upstream, of=m.mixed_cross_entropy, **options):
    z = z.requires_grad_()
    loss = of(z, y, perm, lam, **options)
    (gradient,) = torch.autograd.grad(loss, z, torch.full_like(loss, upstream))
    return loss.detach(), gradient


@pytest.mark.parametrize("case", LOSSES)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_the_loss_and_its_gradient(case, dtype, kind):
    shape, options = LOSSES[case]
    perm = torch.randperm(shape[0])
    z = torch.randn(shape).to(dtype)
    if kind == "labels":
        target = torch.randint(0, shape[1], (shape[0], *shape[2:]))
        target.view(-1)[0] = -100
    else:
        target = torch.rand(shape).softmax(1)
    weight = 0.5 + torch.rand(shape[1]) if case == "every option" else None
    for lam, upstream in ((0.3, 1.0), (torch.rand(shape[0]), 0.25)):

        def both(z, lam=lam, upstream=upstream):
            return loss_and_gradient(z, target, perm, lam, upstream, weight=weight, **options)

        (loss, gradient), (wanted, expected) = both(z.clone()), with_reference(both, z)
        same(loss, wanted, 1e-4)
        same(gradient, expected, TOLERANCE[dtype])


# name -> (shape of the logits, options)
BINARY_LOSSES = {
    "10 classes": ((MANY, 10), {}),
    "1,000 classes": ((16, 1000), {"reduction": "batchmean"}),
    "unaligned": ((16, 1001), {}),
    "long rows": ((5, 21841), {}),
    "segmentation": ((3, 21, 9, 8), {}),
    "odd maps": ((3, 21, 9, 7), {}),
    "elements": ((16, 100), {"reduction": "none"}),
    "every option": ((16, 100), {"label_smoothing": 0.1, "target_threshold": 0.5}),
    "in place": ((16, 100), {"inplace_backward": True}),
}


@pytest.mark.parametrize("case", BINARY_LOSSES)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("kind", ["labels", "bytes", "probabilities"])
def test_the_binary_loss_and_its_gradient(case, dtype, kind):
    shape, options = BINARY_LOSSES[case]
    z, perm = torch.randn(shape).to(dtype), torch.randperm(shape[0])
    target = {
        "labels": lambda: torch.randint(0, shape[1], (shape[0], *shape[2:])),
        "bytes": lambda: torch.randint(0, 2, shape, dtype=torch.uint8),
        "probabilities": lambda: torch.rand(shape),
    }[kind]()
    if case == "every option":
        options = {**options, "weight": torch.rand(100), "pos_weight": 3 * torch.rand(100)}
    for lam, upstream in ((0.3, 1.0), (torch.rand(shape[0]), 0.25)):

        def both(z, lam=lam, upstream=upstream):
            return loss_and_gradient(
                z, target, perm, lam, upstream, m.mixed_binary_cross_entropy, **options
            )

        (loss, gradient), (wanted, expected) = both(z.clone()), with_reference(both, z)
        same(loss, wanted, 1e-4)
        same(gradient, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced"])
def test_the_loss_of_strided_logits(layout):
    make = {
        "channels_last": lambda: torch.randn(3, 6, 5, 4).contiguous(
            memory_format=torch.channels_last
        ),
        "transposed": lambda: torch.randn(30, 16).t(),
        "sliced": lambda: torch.randn(16, 64)[:, :30],
    }
    z = make[layout]()
    y = torch.randint(0, z.shape[1], (len(z), *z.shape[2:]))
    perm = torch.randperm(len(z))

    def both(z):
        return loss_and_gradient(z, y, perm, 0.3, 1.0)

    same(both(z.detach()), with_reference(both, z), 1e-5)


def test_partner_labels():
    z, y, b = torch.randn(16, 100), torch.randint(0, 100, (16,)), torch.randint(0, 100, (16,))

    def both(z):
        return loss_and_gradient(z, y, None, torch.tensor(0.3), 1.0, target_b=b)

    same(both(z.clone()), with_reference(both, z), 1e-5)


def test_bad_values_poison_their_rows_alone():
    x, y = torch.randn(64, 256), torch.randint(0, 10, (64,))
    perm = torch.randperm(64)
    perm[3], y[5] = 10**9, 5000
    out = m.mix(x, perm, 0.3)
    assert out[3].isnan().all() and not out[4:].isnan().any()
    straight = torch.arange(64)
    rows = m.mixed_cross_entropy(torch.randn(64, 10), y, straight, 0.3, reduction="none")
    assert rows.isnan().nonzero().flatten().tolist() == [5]
    each = m.mixed_binary_cross_entropy(torch.randn(64, 10), y, straight, 0.3, reduction="none")
    assert each.isnan().all(1).nonzero().flatten().tolist() == [5] and not each[:5].isnan().any()
    soft = m.mix_targets(y, straight, 0.3, num_classes=10)
    assert soft.isnan().all(1).nonzero().flatten().tolist() == [5]
    assert not soft[:5].isnan().any()
    _, soft = m.mix_batch_(x, y, straight, 0.3, num_classes=10)
    assert soft[5].isnan().all() and not soft[6:].isnan().any()
    images, perm = torch.randn(4, 3, 5, 6), torch.tensor([1, 10**9, 3, 2])
    m.cutmix_(images, perm, torch.tensor([[0, 2, 0, 10**9], *[[0, 2, 0, 2]] * 3]))
    assert images[1, :, :2, :2].isnan().all() and not images[2:].isnan().any()
    masks = torch.randint(0, 9, (4, 5, 6))
    want = masks.clone()
    want[[0, 2, 3], :2, :2] = masks[[1, 3, 2], :2, :2]  # no NaN: a row with a bad entry stays
    m.cutmix_(masks, perm, (0, 2, 0, 2))
    assert torch.equal(masks, want)
