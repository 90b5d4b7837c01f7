"""The C++ binary cross-entropy on every code path: lines of long and of several short rows, tiles
in scratch memory, stores past the caches, tails, threads and instruction sets."""

import itertools

import pytest
import torch

import mmix_fast as m
from tests.support.cases import DTYPES, ISAS, TOLERANCE
from tests.support.instruction_sets import check_bits_by_threads, run_tests_with
from tests.support.loss_layouts import rows, with_lengths

KINDS = {  # name -> (options, dtype of the target or None for labels, λ)
    "labels": ({}, None, 0.3),
    "smoothed labels": ({"label_smoothing": 0.1}, None, "per sample"),
    "weighted labels": ({"weight": True, "label_smoothing": 0.1}, None, 0.3),
    "thresholded labels": ({"target_threshold": 0.4, "label_smoothing": 0.1}, None, "per sample"),
    "bytes": ({}, torch.uint8, 0.3),
    "own bytes": ({"pos_weight": True}, torch.uint8, 1.0),
    "the partner's target": ({}, torch.float16, 0.0),
    "targets": ({"label_smoothing": 0.1, "pos_weight": True}, torch.bfloat16, "per sample"),
    "thresholded targets": ({"target_threshold": 0.5, "weight": True}, torch.float64, 0.3),
}


LAYOUTS = with_lengths(  # the numbers of classes of each layout
    {
        "rows": (1, 2, 7, 8, 17, 33, 65, 165, 1025, 2047, 2049, 4100),
        "many rows": (1, 3, 10),
        "sliced rows": (1, 21, 63, 64, 170),
        "columns": (1, 21, 170),
        "rows beside": (1, 2, 21, 170),
        "images": (1, 2, 21, 170),
        "channels_last": (1, 2, 21, 170),
        "cut images": (3, 170),
    }
)


def problem(kind, z):
    """(target, perm, lam, options) of this kind of loss for the logits z."""
    options, target_dtype, lam = KINDS[kind]
    options = dict(options)
    batch, classes = z.shape[:2]
    acc = torch.float64 if z.dtype == torch.float64 else torch.float32
    for name in ("weight", "pos_weight"):
        if options.pop(name, False):
            options[name] = (torch.rand(classes) + 0.1).to(acc)
            options[name][1:2] = 0
    if target_dtype is None:
        target = torch.randint(0, classes, (batch, *z.shape[2:]))
        target.view(-1)[0], target.view(-1)[-1] = classes - 1, 0
    elif target_dtype == torch.uint8:
        target = (torch.rand(z.shape) < 0.4).to(target_dtype)
    else:
        target = torch.rand(z.shape).to(target_dtype)
    if lam == "per sample":
        lam = torch.rand(batch).half().to(acc)
        lam[0], lam[-1] = 0, 1
    return target, torch.arange(batch).roll(1), torch.as_tensor(lam, dtype=acc), options


# (reduction, upstream gradient, inplace_backward). Problems take them in turn; None: random.
CALLS = (
    ("none", None, False),
    ("mean", 1.0, False),
    ("batchmean", 0.25, False),
    ("sum", 1.0, True),
    ("none", None, True),
    ("mean", 0.25, True),
)


def compare(kind, z, call):
    reduction, up, inplace = call
    target, perm, lam, options = problem(kind, z)
    acc = torch.promote_types(z.dtype, torch.float32)
    options |= {"reduction": reduction}
    own = (z.detach().clone() if inplace else z.detach()).requires_grad_()
    # The reference in the same arithmetic: at a threshold, the last bit of a target decides.
    truth = z.detach().to(acc).requires_grad_()
    want = m.reference.mixed_binary_cross_entropy(truth, target, perm, lam, **options)
    got = m.mixed_binary_cross_entropy(own, target, perm, lam, inplace_backward=inplace, **options)
    near = {"rtol": 1e-12, "atol": 1e-12} if acc == torch.float64 else {"rtol": 3e-6, "atol": 2e-6}
    torch.testing.assert_close(got, want.detach(), **near)
    upstream = torch.rand(want.shape, dtype=acc) if up is None else torch.tensor(up, dtype=acc)
    (gradient,) = torch.autograd.grad(got, own, upstream)
    (want,) = torch.autograd.grad(want, truth, upstream)
    info = torch.finfo(z.dtype)
    atol = 2 * TOLERANCE[acc] * want.abs().max().item() + info.smallest_normal * info.eps
    torch.testing.assert_close(gradient.to(acc), want, rtol=TOLERANCE[z.dtype], atol=atol)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_path(kind, layout):
    make, lengths = LAYOUTS[layout]
    calls = itertools.cycle(CALLS)
    for classes in lengths:
        for dtype in DTYPES:
            compare(kind, make(classes, dtype), next(calls))
        next(calls)  # so that a dtype does not get the same call each time


def test_labels_at_the_edges_of_a_piece():
    """A long row is processed in pieces of 2048 classes."""
    edges = (0, 2047, 2048, 2049, 4095, 4096, 4099)
    z = torch.randn(len(edges), 4100, requires_grad=True)
    for shift in range(len(edges)):
        y = torch.tensor(edges).roll(shift)
        loss = m.mixed_binary_cross_entropy(z, y, torch.arange(len(y)).flip(0), 0.3)
        want = z.detach().sigmoid()
        want[range(len(y)), y] -= 0.3
        want[range(len(y)), y.flip(0)] -= 0.7
        (got,) = torch.autograd.grad(loss, z)
        torch.testing.assert_close(got * z.numel(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_inf_and_nan_logits_in_every_position(value):
    """In whole vectors and in tails of every length: such an element leaves the others alone."""
    for classes, dtype in itertools.product((3, 8, 13, 21, 35), DTYPES):
        z = rows(classes, dtype)
        z[1, 0] = z[2, classes - 1] = z[3, classes // 2] = float(value)
        target, perm, lam, _ = problem("bytes", z)
        for own in (z.clone(), z.t().contiguous().t()):  # both code paths
            own, truth = own.requires_grad_(), z.double().requires_grad_()
            losses = [
                loss(a, target, perm, b, reduction="none")
                for loss, a, b in (
                    (m.mixed_binary_cross_entropy, own, lam),
                    (m.reference.mixed_binary_cross_entropy, truth, lam.double()),
                )
            ]
            near = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype], "equal_nan": True}
            torch.testing.assert_close(losses[0].double(), losses[1].detach(), **near)
            gradients = [
                torch.autograd.grad(out.sum(), leaf)[0].double()
                for out, leaf in zip(losses, (own, truth), strict=True)
            ]
            torch.testing.assert_close(*gradients, **near)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [0, 1])
def test_a_result_past_the_caches(dtype, shift):
    """From 16 MiB on, results are streamed; rows of an odd length begin at any address."""
    classes = 4099
    count = (16 << 20) // (classes * dtype.itemsize) + 2
    z = torch.randn(count * classes + shift).to(dtype)[shift:].view(count, classes)
    y, perm = torch.randint(0, classes, (count,)), torch.randperm(count)
    z.requires_grad_()
    (got,) = torch.autograd.grad(m.mixed_binary_cross_entropy(z, y, perm, 0.3, reduction="sum"), z)
    for r in (0, 1, count // 2, count - 1):
        want = z.detach()[r].to(torch.promote_types(dtype, torch.float32)).sigmoid()
        want[y[r]] -= 0.3
        want[y[perm[r]]] -= 0.7
        torch.testing.assert_close(got[r], want.to(dtype), rtol=TOLERANCE[dtype], atol=1e-6)


def test_the_sum_of_many_small_losses_is_accurate():
    """Logarithms are taken of products of 32 factors: at most 2^32, and often barely above 1."""
    for size in (0.0, 1e-3, 5.0, 17.0):
        z = torch.full((3, 2051), -size)
        t = torch.zeros(3, 2051, dtype=torch.uint8)
        got = m.mixed_binary_cross_entropy(z, t, torch.arange(3), 1.0, reduction="sum")
        want = torch.nn.functional.softplus(z.double()).sum()
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=0)


@pytest.mark.deep
@pytest.mark.parametrize("isa", [ISAS[0], ISAS[-1]])  # the narrowest and the widest vectors
def test_same_bits_on_any_number_of_threads(isa):
    check_bits_by_threads(isa, __name__, "mixed_binary_cross_entropy", len(KINDS))


@pytest.mark.deep
@pytest.mark.parametrize("isa", ISAS[:-1])
def test_every_path_on_every_instruction_set(isa):
    run_tests_with(isa, __file__)
