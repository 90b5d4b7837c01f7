"""Shards of the classes with special logits, labels and partners: -inf, NaN, 0, bad values."""

import pytest
import torch

from tests.cuda_emulation.cross_entropy_checks import CALM, OPS, SEGMENTS, arguments, close
from tests.cuda_emulation.shard_checks import CPP, join

INF, NAN = float("inf"), float("nan")
FLOAT = torch.float32
# Shards by tiles, by rows, by rows in segments.
SIZES = {"tiles": (CALM, 10), "rows": (CALM, 1001), "segments": (SEGMENTS, 9001)}


def part_and_gradient(z, args, stats=(0.5, 3.0, 2.0)):
    """The part, and the backward for these statistics of all classes, with an upstream of 2."""
    stats = torch.tensor([stats]).expand(len(z), 3).contiguous()
    grad = torch.full((len(z),) if args[7] == "none" else (), 2.0)
    part = OPS.cross_entropy_part(z, *args)
    return part, OPS.cross_entropy_backward(grad, stats, z, *args)


def as_cpp(z, args):
    """The part, the gradient and its softmax. The C++ ops must give the same part and gradient.

    Each row has a second shard, with finite logits.
    """
    part = OPS.cross_entropy_part(z, *args)
    assert close(part, CPP.cross_entropy_part(z, *args).double(), 3e-6)
    stats, _ = join([part, torch.tensor([0.5, 3.0, 0.1, 1.0]).expand(part.shape)])
    grad = torch.linspace(0.5, 2.0, len(z))
    gradient = OPS.cross_entropy_backward(grad, stats, z, *args)
    want = CPP.cross_entropy_backward(grad, stats, z, *args)
    assert close(gradient, want.double(), 3e-6)
    top, log_sum, mass = stats.T[:, :, None]
    return part, gradient, grad[:, None] * mass * torch.exp(z - top - log_sum)


@pytest.fixture(params=SIZES)
def classes(emulator, request):
    device, classes = SIZES[request.param]
    emulator.set_device(*device)
    return classes


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"softcap": 5.0}], ids=str)
def test_masked_nan_infinite_and_ignored_rows(classes, options):
    z = torch.randn(9, classes)
    offset, every = 7, classes + 20
    y = torch.tensor([0, 7, 8, 9, -100, 8, 10, every - 1, 8])  # 0 and the last: of other shards
    z[0] = -INF
    z[1, 1:] = -INF
    z[2, 0] = NAN
    z[3, 1] = INF
    z[4] = NAN
    z[5] = -INF
    z[6, 3] = -INF
    z[7, 2:] = NAN
    z[8, 2], z[8, 3:] = NAN, -INF
    args = arguments(
        y, torch.arange(9), torch.tensor(0.25), reduction="none", class_offset=offset,
        num_classes=every, **options
    )  # fmt: skip
    part, gradient, _ = as_cpp(z, args)
    smooth = "label_smoothing" in options
    assert part[0, :2].tolist() == [0, -INF] and part[0, 2] == (-INF if smooth else 0)
    assert part[1, 1] == 0 and part[2, 1].isnan() and part[7, 1].isnan() and part[8, 1].isnan()
    assert (part[4] == 0).all() and (gradient[4] == 0).all()
    assert part[5, :3].tolist() == [0, -INF, -INF] and part[6, 2] == -INF
    assert smooth or (part[[0, 7], 3] == 0).all()
    # A -inf in a shard of which nothing is finite has no part in the softmax.
    assert gradient[0].isfinite().all() and gradient[5].isfinite().all()
    assert smooth or (gradient[0] == 0).all()


def test_terms_with_coefficient_0_are_absent(classes):
    z, t, other = torch.randn(4, classes), torch.rand(4, classes), torch.rand(4, classes)
    weight = torch.rand(classes + 5)
    lam = torch.tensor([0.0, 1.0, 0.5, 0.5])
    t[0], other[1] = NAN, INF
    weight[5], z[:, 2] = 0, -INF  # class 5 is the shard's column 2
    kw = {"weight": weight, "reduction": "none", "class_offset": 3, "num_classes": classes + 5}
    part, gradient, _ = as_cpp(z, arguments(t, None, lam, target_b=other, **kw))
    assert part.isfinite().all() and gradient.isfinite().all()
    y, y_b = torch.tensor([2, 3, 5, 5]), torch.tensor([3, 2, -100, 5])
    for smoothing in (0.0, 0.1):
        kw["label_smoothing"] = smoothing
        part, gradient, _ = as_cpp(z, arguments(y, None, lam, target_b=y_b, **kw))
        assert part.isfinite().all() and gradient.isfinite().all()
        assert smoothing or (part[2:, 2:] == 0).all()


def test_a_row_that_does_not_count_gives_zeros(classes):
    """Whatever the weights are, which its spread of 0 is multiplied by."""
    z, y = torch.randn(2, classes), torch.tensor([-100, -100])
    weight = torch.ones(classes + 5)
    weight[7] = INF
    args = arguments(
        y, torch.arange(2), torch.tensor(0.25), weight=weight, reduction="none",
        label_smoothing=0.1, class_offset=5, num_classes=classes + 5
    )  # fmt: skip
    part, gradient, _ = as_cpp(z, args)
    assert (part == 0).all() and (gradient == 0).all()


def test_only_a_labels_own_shard_has_its_target(classes):
    """Both neighbours of each end of the shard, as own label and as the partner's."""
    z = torch.randn(6, classes)
    labels = torch.tensor([99, 100, 99 + classes, 100 + classes, 0, 200 + classes])
    inside = torch.tensor([0.0, 1, 1, 0, 0, 0])
    weight = torch.rand(classes + 201) + 1
    for lam, y, y_b in (
        (1.0, labels, labels.roll(1)),
        (0.0, labels.roll(1), labels),
        (0.25, labels, labels),
    ):
        args = arguments(
            y, None, torch.tensor(lam), target_b=y_b, weight=weight, reduction="none",
            class_offset=100, num_classes=classes + 201
        )  # fmt: skip
        part, gradient, softmax = as_cpp(z, args)
        assert torch.allclose(part[:, 3], weight[labels] * inside)
        hit = (gradient - softmax).abs() > 0.01
        assert hit.sum(1).tolist() == inside.tolist()


@pytest.mark.parametrize("kind", ["labels", "smooth", "capped"])
def test_a_bad_label_poisons_its_rows_and_no_other(classes, kind):
    z, every = torch.randn(5, classes), classes + 50
    options = {"labels": {}, "smooth": {"label_smoothing": 0.1}, "capped": {"softcap": 3.0}}[kind]
    perm = torch.arange(5).roll(1)
    good = torch.tensor([0, 25, 30, every - 1, 20 + classes])
    kw = {"reduction": "none", "class_offset": 20, "num_classes": every, **options}
    want, want_gradient = part_and_gradient(z, arguments(good, perm, torch.tensor(0.25), **kw))
    for label in (every, -1, 2**32, -(2**32) + 25, 2**31 + 25):
        bad = good.clone()
        bad[1] = label  # of row 1, and of row 2's partner
        args = arguments(bad, perm, torch.tensor(0.25), **kw)
        part, gradient = part_and_gradient(z, args)
        assert part[1:3, 2:].isnan().all() and gradient[1:3].isnan().all()
        rest = [0, 3, 4]
        assert torch.equal(part[rest], want[rest])
        assert torch.equal(gradient[rest], want_gradient[rest])


def test_a_bad_row_of_another_shard_poisons_the_gradient_here(classes):
    """The backward is told of it by the sum of the targets over all classes."""
    z = torch.randn(2, classes)
    args = arguments(torch.tensor([3, 4]), torch.arange(2), torch.tensor(0.25), num_classes=classes)
    assert part_and_gradient(z, args, (0.5, 3.0, NAN))[1].isnan().all()


@pytest.mark.parametrize("probabilities", [False, True])
def test_a_bad_perm_entry_poisons_its_row_and_no_other(classes, probabilities):
    z = torch.randn(4, classes)
    y = torch.rand(4, classes) if probabilities else torch.tensor([0, 1, 2, 3])
    kw = {"reduction": "none", "num_classes": classes + 9, "class_offset": 1}
    perm = torch.tensor([3, 2, 1, 0])
    want, want_gradient = part_and_gradient(z, arguments(y, perm, torch.tensor(0.25), **kw))
    for entry in (4, -1, 2**32):
        bad = perm.clone()
        bad[1] = entry
        part, gradient = part_and_gradient(z, arguments(y, bad, torch.tensor(0.25), **kw))
        assert part[1, 2:].isnan().all() and gradient[1].isnan().all()
        rest = [0, 2, 3]
        assert torch.equal(part[rest], want[rest])
        assert torch.equal(gradient[rest], want_gradient[rest])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, FLOAT, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 0), (3, 0, 4), (1, 0)], ids=str)
def test_an_empty_shard(emulator, dtype, shape):
    z = torch.randn(shape).to(dtype)
    rows = shape[:1] + shape[2:]
    acc = torch.float64 if dtype == torch.float64 else FLOAT
    lam, perm = torch.tensor(0.25, dtype=acc), torch.arange(shape[0]).flip(0)
    y = torch.ones(rows, dtype=torch.int64)
    y.view(-1)[-1:] = -100
    weight = torch.rand(9)
    for kw in ({}, {"label_smoothing": 0.1, "weight": weight}, {"softcap": 2.0, "z_loss": 0.1}):
        for target in (y, torch.rand(shape)):
            args = arguments(target, perm, lam, class_offset=4, num_classes=9, **kw)
            part = OPS.cross_entropy_part(z, *args)
            empty = torch.tensor([0, -INF, 0, 0], dtype=acc).expand(len(part), 4).clone()
            if target is y and len(part) == 1:
                empty[0, 1] = 0  # the only row does not count
            assert torch.equal(part, empty) and part.dtype == acc
            stats = torch.ones(len(part), 3, dtype=acc)
            gradient = OPS.cross_entropy_backward(lam, stats, z, *args)
            assert gradient.shape == z.shape and gradient.dtype == dtype


def test_a_batch_of_no_rows(emulator):
    emulator.launches()
    z, none = torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64)
    args = arguments(none, none, torch.tensor(0.5), class_offset=4, num_classes=20)
    assert OPS.cross_entropy_part(z, *args).shape == (0, 4)
    stats = torch.zeros(0, 3)
    assert OPS.cross_entropy_backward(torch.tensor(1.0), stats, z, *args).shape == z.shape
    assert emulator.launches() == []
