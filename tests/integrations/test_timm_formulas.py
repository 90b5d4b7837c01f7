"""The drop-ins for timm without timm: against formulas, and calls with one NumPy seed compared."""

import pytest
import torch
import torch.nn.functional as F

np = pytest.importorskip("numpy")

from mmix_fast.integrations import timm as drop_in  # noqa: E402
from mmix_fast.integrations.timm import Mixup, SoftTargetCrossEntropy  # noqa: E402

MODES = ["batch", "pair", "elem"]
KINDS = {
    "cutmix": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0},
    "minmax": {"mixup_alpha": 0.0, "cutmix_minmax": (0.2, 0.8)},
    "seldom": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "prob": 0.5},
}


def seeded(mixup, x, y, seed=0):
    np.random.seed(seed)
    return mixup(x, y)


HOT = [torch.uint8, torch.int64, torch.bool, torch.float16, torch.float64]
LABELS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.bool]


@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("dtype", LABELS)
def test_labels_of_any_dtype_and_shape(dtype, shape):
    x, y = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 1, 0])
    want = seeded(Mixup(num_classes=3), x.clone(), y)[1]
    got = seeded(Mixup(num_classes=3), x.clone(), y.to(dtype).reshape(shape))[1]
    assert got.shape == (4, 3) and torch.equal(got, want)
    fractions = seeded(Mixup(num_classes=3), x.clone(), y + 0.75)[1]
    assert torch.equal(fractions, want)


def test_bad_targets():
    x, y = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 1, 0])
    before, state = x.clone(), np.random.get_state()[1].copy()
    with pytest.raises(ValueError, match=r"target must hold 4 labels.* need multi_label=True"):
        Mixup(num_classes=3)(x, F.one_hot(y, 3))
    for bad in (y, F.one_hot(y, 4)):
        with pytest.raises(ValueError, match=r"dense of shape \(4, 3\) with multi_label=True"):
            Mixup(num_classes=3, multi_label=True)(x, bad)
    assert torch.equal(x, before) and (np.random.get_state()[1] == state).all()
    with pytest.raises(IndexError):
        Mixup(num_classes=3)(x, y + 2)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_multi_label_targets(dtype):
    x, y = torch.rand(4, 3, 8, 8), torch.randint(0, 2, (4, 5))
    mixup = Mixup(num_classes=5, multi_label=True, label_smoothing=0.2)
    np.random.seed(3)
    np.random.rand()
    lam = np.random.beta(1.0, 1.0)
    smooth = y * 0.8 + 0.1
    got = seeded(mixup, x, y.to(dtype), 3)[1]
    torch.testing.assert_close(got, lam * smooth + (1 - lam) * smooth.flip(0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.bool])
def test_integer_images_are_pasted(dtype, kind, mode):
    mixup = Mixup(**KINDS[kind], mode=mode, num_classes=3)
    pasted = False
    for seed in range(6):
        x, y = torch.randint(0, 200, (6, 3, 9, 8)).to(dtype), torch.randint(0, 3, (6,))
        want, want_target = seeded(mixup, x.float(), y, seed)
        got, target = seeded(mixup, given := x.clone(), y, seed)
        assert got is given and got.dtype == dtype
        assert torch.equal(got.float(), want) and torch.equal(target, want_target)
        pasted |= not torch.equal(got, x)
    assert pasted


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_integer_images_are_not_blended(mode, alpha):
    mixup = Mixup(cutmix_alpha=alpha, mode=mode, num_classes=3)
    x, y = torch.randint(0, 200, (8, 3, 8, 8), dtype=torch.uint8), torch.zeros(8)
    before = x.clone()
    np.random.seed(1)
    with pytest.raises(TypeError, match=r"x must be floating.*got uint8.*x\.float\(\).*alpha=1"):
        for _ in range(20):
            x.copy_(before)
            mixup(x, y)
    assert torch.equal(x, before)
    for idle in (Mixup(prob=0.0, mode=mode), Mixup(mode=mode)):
        idle.mixup_enabled = idle.mix_prob == 0  # each of the two disables it
        assert torch.equal(idle(x, y)[0], before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_of_the_targets(dtype, mode):
    x, y = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    mixup = Mixup(num_classes=3, mode=mode, label_smoothing=0.0)
    want = seeded(mixup, x.clone(), y)[1]
    got = seeded(mixup, x.to(dtype), y)[1]
    per_sample = mode != "batch"
    assert got.dtype == (torch.float64 if per_sample and dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.float(), want, rtol=1e-7, atol=0)  # λ stays float32


@pytest.mark.parametrize("mode", MODES)
def test_vectors_and_video(mode):
    y = torch.tensor([0, 1, 2, 0])
    for shape in ((4, 7), (4,), (4, 2, 5, 6, 7)):
        x = torch.rand(shape)
        mixed, target = Mixup(num_classes=3, mode=mode, label_smoothing=0.0)(x.clone(), y)
        lam = target[1, 1]
        torch.testing.assert_close(mixed[1], lam * x[1] + (1 - lam) * x[2])
    cutmix = Mixup(**KINDS["cutmix"], num_classes=3, mode=mode, label_smoothing=0.0)
    mixed, target = seeded(
        cutmix, torch.arange(4.0).reshape(4, 1, 1, 1, 1).repeat(1, 2, 3, 8, 9), y
    )
    share = (mixed[1] != 1).float().mean()
    torch.testing.assert_close(target[1, 1], 1 - share)
    assert (mixed == mixed[:, :1, :1]).all() and share > 0
    with pytest.raises(ValueError, match=r"x must have shape \(B, ..., H, W\) for CutMix"):
        cutmix(torch.rand(4, 7), y)


def test_mixup_and_cutmix_in_one_batch(backend):
    """Samples are pasted, blended or left, each by its own draw."""
    mixup = Mixup(cutmix_alpha=1.0, mode="elem", prob=0.7, num_classes=12, label_smoothing=0.0)
    x, y = torch.rand(12, 1, 10, 10) + torch.arange(12.0).reshape(12, 1, 1, 1), torch.arange(12)
    seen = set()
    for seed in range(8):
        mixed, target = seeded(mixup, x.clone(), y, seed)
        for i in range(12):
            lam, partner = target[i, i], x[11 - i]
            same, other = mixed[i] == x[i], mixed[i] == partner
            if (same | other).all():
                seen.add("untouched" if same.all() else "pasted")
                torch.testing.assert_close(same.float().mean(), lam)
            else:
                seen.add("blended")
                torch.testing.assert_close(mixed[i], lam * x[i] + (1 - lam) * partner)
    assert seen == {"untouched", "pasted", "blended"}


def naive(x, target):
    return (-target * F.log_softmax(x, -1)).sum(-1).mean()


@pytest.mark.parametrize(
    ("shape", "target_shape"),
    [
        ((6, 10), (6, 10)),
        ((4, 3, 10), (4, 3, 10)),
        ((6, 10), (1, 10)),
        ((6, 10), (10,)),
        ((1, 10), (6, 10)),
        ((10,), (10,)),
        ((4, 3, 10), (3, 10)),
    ],
)
def test_loss_of_every_shape(backend, shape, target_shape):
    x, target = torch.randn(shape, requires_grad=True), torch.rand(target_shape)
    got, want = SoftTargetCrossEntropy()(x, target), naive(x, target)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, x), torch.autograd.grad(want, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "hot", [torch.uint8, torch.int64, torch.bool, torch.float16, torch.float64]
)
def test_loss_of_every_dtype(backend, dtype, hot):
    x = torch.randn(6, 10, dtype=dtype, requires_grad=True)
    target = torch.randint(0, 2, (6, 10))
    got, wide = SoftTargetCrossEntropy()(x, target.to(hot)), x.detach().double().requires_grad_()
    want = naive(wide, target)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    (gradient,), (wanted,) = torch.autograd.grad(got, x), torch.autograd.grad(want, wide)
    torch.testing.assert_close(gradient, wanted.to(dtype))


def test_loss_refuses_labels():
    x = torch.randn(3, 3)
    for labels in (torch.tensor([0, 1, 2]), torch.rand(2, 3)):  # 3 labels, 3 classes
        with pytest.raises(ValueError, match=r"target must hold probabilities of shape \(3, 3\)"):
            SoftTargetCrossEntropy()(x, labels)


@pytest.mark.parametrize("name", ["FastCollateMixup", "NaFlexMixup"])
def test_missing_classes_of_timm_raise_with_advice(name):
    with pytest.raises(ImportError, match=f"no {name}: keep timm.data's.*--no-prefetcher"):
        getattr(drop_in, name)
    assert name in drop_in.__doc__
    assert not hasattr(drop_in, "Mixup2")
