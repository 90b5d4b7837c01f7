"""The drop-ins for timm against timm's Mixup and loss; the same NumPy seed gives the same draws."""

import numpy as np
import pytest
import torch

from mmix_fast.integrations.timm import Mixup, SoftTargetCrossEntropy

pytestmark = pytest.mark.deep
timm_data = pytest.importorskip("timm.data")
timm_loss = pytest.importorskip("timm.loss")

KINDS = {
    "mixup": {"mixup_alpha": 0.8},
    "cutmix": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0},
    "both": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "switch_prob": 0.4},
    "minmax": {"mixup_alpha": 0.8, "cutmix_minmax": (0.2, 0.8)},
    "seldom": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 0.5},
    "uncorrected": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "correct_lam": False},
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("kind", KINDS)
def test_mixup_equals_timms(kind, mode, channels_last):
    options = {**KINDS[kind], "mode": mode, "label_smoothing": 0.1, "num_classes": 7}
    ours, theirs = Mixup(**options), timm_data.Mixup(**options)
    for seed in range(12):
        x, y = torch.randn(8, 3, 13, 10), torch.randint(0, 7, (8,))
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        np.random.seed(seed)
        want, want_target = theirs(x.clone(), y)
        np.random.seed(seed)
        got, target = ours(given := x.clone(), y)
        assert got is given
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
        torch.testing.assert_close(target, want_target, rtol=0, atol=1e-6)
        assert np.random.rand() == (np.random.seed(seed), theirs(x, y), np.random.rand())[2]


def test_disabled_multi_label_and_odd_batches():
    ours, theirs = (m(num_classes=4, mode="elem") for m in (Mixup, timm_data.Mixup))
    ours.mixup_enabled = theirs.mixup_enabled = False
    x, y = torch.randn(6, 3, 4, 4), torch.randint(0, 4, (6,))
    assert torch.equal(ours(x.clone(), y)[0], x)
    torch.testing.assert_close(ours(x, y)[1], theirs(x, y)[1])
    ours, theirs = (m(num_classes=4, multi_label=True) for m in (Mixup, timm_data.Mixup))
    dense = torch.randint(0, 2, (6, 4))
    np.random.seed(0)
    want = theirs(x.clone(), dense)
    np.random.seed(0)
    torch.testing.assert_close(ours(x.clone(), dense), want)
    for mode in ("batch", "pair", "elem"):
        mixup = Mixup(cutmix_alpha=1.0, num_classes=4, mode=mode)
        mixed, target = mixup(x[:5].clone(), y[:5])
        assert torch.equal(mixed[2], x[2]) or mode != "pair"
        torch.testing.assert_close(target.sum(1), torch.ones(5))
        torch.testing.assert_close(mixup(x[:1].clone(), y[:1])[0], x[:1])


@pytest.mark.parametrize("shape", [(6, 10), (4, 3, 10)])
def test_soft_target_cross_entropy(shape):
    x = torch.randn(shape, requires_grad=True)
    target = torch.rand(shape)
    got, want = SoftTargetCrossEntropy()(x, target), timm_loss.SoftTargetCrossEntropy()(x, target)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, x), torch.autograd.grad(want, x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "half"}, "mode must be one of batch, pair, elem, got 'half'"),
        ({"mixup_alpha": 0.0}, "must be given, got none"),
        ({"cutmix_minmax": (0.1,)}, "cutmix_minmax must be"),
        ({"prob": 2.0}, r"prob must be in \[0, 1\]"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Mixup(**options)


def test_a_training_step_of_a_timm_model():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=5)
    mixup, criterion = Mixup(cutmix_alpha=1.0, num_classes=5), SoftTargetCrossEntropy()
    x, y = mixup(torch.randn(4, 3, 32, 32), torch.randint(0, 5, (4,)))
    criterion(model(x), y).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float64])
def test_images_and_labels_of_every_dtype(dtype, mode):
    """The same images as timm's, and targets of the same dtype and values."""
    alphas = {"mixup_alpha": 0.0, "cutmix_alpha": 1.0} if dtype == torch.uint8 else {}
    options = {**alphas, "mode": mode, "num_classes": np.int64(7)}
    ours, theirs = Mixup(**options), timm_data.Mixup(**options)
    images = torch.randint(0, 255, (8, 3, 13, 10)).to(dtype)
    labels = torch.randint(0, 7, (8,))
    for seed, y in enumerate((labels, labels.int(), labels.byte()[:, None], labels + 0.5)):
        np.random.seed(seed)
        want, want_target = theirs(images.clone(), y)
        np.random.seed(seed)
        got, target = ours(images.clone(), y)
        assert got.dtype == want.dtype and target.dtype == want_target.dtype
        torch.testing.assert_close(got, want)
        if mode == "batch" or dtype == torch.float64:
            torch.testing.assert_close(target, want_target, rtol=1e-6, atol=1e-7)
        elif dtype != torch.uint8:  # timm rounds λ and 1-λ to the images' dtype, for uint8 to 0
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(target, want_target, rtol=eps, atol=eps)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_bytes_are_pasted_on_every_backend(backend, mode, channels_last):
    options = {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "mode": mode, "num_classes": 7}
    ours, theirs = Mixup(**options), timm_data.Mixup(**options)
    images, labels = torch.randint(0, 256, (8, 3, 8, 16)).byte(), torch.randint(0, 7, (8,))
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    for seed in range(4):
        np.random.seed(seed)
        want = theirs(images.clone(), labels)[0]
        np.random.seed(seed)
        got, target = ours(x := images.clone(), labels)
        assert got is x and torch.equal(got, want)
        torch.testing.assert_close(target.sum(1), torch.ones(8))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_a_drawn_mixup_of_bytes_writes_nothing(backend, mode):
    mixup = Mixup(cutmix_alpha=1.0, switch_prob=0.5, mode=mode, num_classes=7)
    images, refused = torch.randint(0, 256, (8, 3, 8, 16)).byte(), 0
    for seed in range(8):
        x = images.clone()
        np.random.seed(seed)
        try:
            mixup(x, torch.arange(8) % 7)
        except TypeError as error:
            assert "x must be floating to be blended by Mixup" in str(error)
            assert torch.equal(x, images)
            refused += 1
    assert refused == 8 if mode == "elem" else refused


def test_loss_broadcasts_as_timm():
    for x_shape, shape in (
        ((6, 10), (1, 10)),
        ((6, 10), (10,)),
        ((1, 10), (6, 10)),
        ((10,), (10,)),
    ):
        x, target = torch.randn(x_shape), torch.randint(0, 3, shape).double()
        want = timm_loss.SoftTargetCrossEntropy()(x, target)
        torch.testing.assert_close(SoftTargetCrossEntropy()(x, target), want, check_dtype=False)
