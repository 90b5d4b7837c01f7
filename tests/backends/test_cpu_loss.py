"""The C++ loss on every code path: vectors along the classes of long rows, or across rows that are
short or adjacent in memory; labels and probabilities; tails, special values, instruction sets."""

import itertools

import pytest
import torch

import mmix_fast as m
from tests.support.cases import DTYPES, ISAS, TOLERANCE
from tests.support.instruction_sets import check_bits_by_threads, run_tests_with
from tests.support.loss_layouts import rows, with_lengths

KINDS = {  # name -> (options, dtype of the target or None for labels, λ)
    "labels": ({}, None, 0.3),
    "smoothed": ({"label_smoothing": 0.1}, None, 0.3),
    "weighted": ({"weight": True}, None, 0.3),
    "weighted and smoothed": ({"weight": True, "label_smoothing": 0.1}, None, "per sample"),
    "one target": ({}, torch.float32, 1.0),
    "one target of float64": ({}, torch.float64, 1.0),
    "the partner's target": ({}, torch.bfloat16, 0.0),
    "two targets": ({}, torch.float32, 0.3),
    "two targets of float16": ({}, torch.float16, "per sample"),
    "smoothed targets": ({"label_smoothing": 0.1, "weight": True}, torch.bfloat16, 0.3),
    "capped": ({"softcap": 2.0}, None, 0.3),
    "capped targets": ({"softcap": 2.0, "z_loss": 0.1}, torch.float32, 0.3),
    "z-loss": ({"z_loss": 0.1}, None, "per sample"),
}


LAYOUTS = with_lengths(  # the numbers of classes of each layout
    {
        "rows": (1, 2, 7, 8, 9, 17, 33, 65, 159, 160, 165, 177),
        "sliced rows": (1, 21, 170),
        "columns": (1, 21, 170),
        "rows beside": (1, 2, 21, 67, 170),
        "images": (1, 2, 21, 67, 170),
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
    if options.pop("weight", False):
        options["weight"] = (torch.rand(classes) + 0.1).to(acc)
        options["weight"][1:2] = 0
    if target_dtype is None:
        target = torch.randint(0, classes, (batch, *z.shape[2:]))
        target.view(-1)[0], target.view(-1)[-1] = classes - 1, -100
    else:
        target = torch.rand(z.shape).to(target_dtype)
        target[:, 0] = 0
    if lam == "per sample":
        lam = torch.rand(batch)
        lam[0], lam[-1] = 0, 1
    return target, torch.arange(batch).roll(1), lam, options


# (reduction, upstream gradient, inplace_backward). Problems take them in turn; None: random.
CALLS = (
    ("none", None, False),
    ("mean", 1.0, False),
    ("mean", 0.25, False),
    ("sum", 1.0, True),
    ("none", None, True),
    ("mean", 0.25, True),
)


def exact(t):
    """A floating tensor as float64, anything else as it is."""
    return t.double() if torch.is_tensor(t) and t.is_floating_point() else t


def compare(kind, z, call):
    reduction, up, inplace = call
    target, perm, lam, options = problem(kind, z)
    acc = torch.promote_types(z.dtype, torch.float32)
    lam = torch.as_tensor(lam, dtype=acc)
    options |= {"reduction": reduction}
    own, truth = z.detach(), z.detach().double().requires_grad_()
    own = (own.clone() if inplace else own).requires_grad_()
    want = m.reference.mixed_cross_entropy(
        truth, exact(target), perm, exact(lam), **{k: exact(v) for k, v in options.items()}
    )
    got = m.mixed_cross_entropy(own, target, perm, lam, inplace_backward=inplace, **options)
    near = {"rtol": 1e-12, "atol": 1e-12} if acc == torch.float64 else {"rtol": 2e-6, "atol": 2e-6}
    torch.testing.assert_close(got.double(), want.detach(), **near)
    upstream = torch.rand(want.shape, dtype=acc) if up is None else torch.tensor(up, dtype=acc)
    (gradient,) = torch.autograd.grad(got, own, upstream)
    (want,) = torch.autograd.grad(want, truth, upstream.double())
    # Where terms cancel, their rounding errors remain: the terms are about 1 at most.
    near = {"rtol": TOLERANCE[z.dtype], "atol": TOLERANCE[acc] * max(want.abs().max().item(), 0.1)}
    torch.testing.assert_close(gradient.double(), want, **near)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_path(kind, layout):
    make, lengths = LAYOUTS[layout]
    calls = itertools.cycle(CALLS)
    for classes in lengths:
        for dtype in DTYPES:
            compare(kind, make(classes, dtype), next(calls))
        next(calls)  # so that a dtype does not get the same call each time


SPECIAL = ("inf", "-inf", "nan", "all -inf", "all nan")


@pytest.mark.parametrize("kind", [k for k in KINDS if "float64" not in k])
@pytest.mark.parametrize("special", SPECIAL)
def test_inf_and_nan_logits_in_every_position(kind, special):
    """At classes with a target and without one, in whole vectors and in tails of every length."""
    value = float(special.removeprefix("all "))
    for classes, dtype in itertools.product((3, 8, 13, 21, 160, 165, 171, 183), DTYPES):
        z = rows(classes, dtype)
        if special.startswith("all"):
            z[1] = value
        else:
            z[1, 0] = z[2, classes - 1] = z[3, classes // 2] = value
        target, perm, lam, options = problem(kind, z)
        if not target.is_floating_point():
            target[target == 1] = 0  # this row counts, even if class 1 has weight 0
        lam = torch.as_tensor(lam, dtype=torch.promote_types(dtype, torch.float32))
        options |= {"reduction": "none"}
        for own in (z.clone(), z.t().contiguous().t()):  # both code paths
            own, truth = own.requires_grad_(), z.double().requires_grad_()
            want = m.reference.mixed_cross_entropy(
                truth, exact(target), perm, exact(lam), **{k: exact(v) for k, v in options.items()}
            )
            got = m.mixed_cross_entropy(own, target, perm, lam, **options)
            near = {"rtol": 1e-5, "atol": 1e-5, "equal_nan": True}
            torch.testing.assert_close(got.double(), want.detach(), **near)
            (gradient,) = torch.autograd.grad(got.sum(), own)
            (want,) = torch.autograd.grad(want.sum(), truth)
            near |= {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
            torch.testing.assert_close(gradient.double(), want, **near)


@pytest.mark.parametrize("kind", ["labels", "smoothed", "weighted and smoothed", "two targets"])
def test_rows_of_more_than_one_chunk(kind):
    """Exponentials of 4096 float32 or 2048 float64 are kept. Longer rows are cut into chunks."""
    calls = itertools.cycle(CALLS)
    for classes in (2047, 2049, 4095, 4096, 4097, 8195):
        for dtype in DTYPES:
            compare(kind, rows(classes, dtype), next(calls))


def test_a_chunk_without_a_finite_logit():
    """A long row with finite logits in other chunks: the maximum of this chunk is -inf."""
    for first, dtype in itertools.product((True, False), (torch.float32, torch.float64)):
        z = torch.randn(3, 9000, dtype=dtype)
        z[:, : 4100 if first else 9000] = -float("inf")
        z[:, 5000 : 5005 if first else 5000] = 1.0
        z[:, :3] = z[:, :3] if first else 1.0
        t = torch.zeros(3, 9000, dtype=dtype)
        t[:, 5001 if first else 1] = 1
        truth, own = z.double().requires_grad_(), z.clone().requires_grad_()
        want = m.reference.mixed_cross_entropy(truth, t.double(), torch.arange(3), 0.3)
        got = m.mixed_cross_entropy(own, t, torch.arange(3), 0.3)
        assert got.isfinite()
        torch.testing.assert_close(got.double(), want.detach())
        gradients = [torch.autograd.grad(a, b)[0].double() for a, b in ((got, own), (want, truth))]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("classes", [3, 8, 170], ids=str)
@pytest.mark.parametrize("across", [True, False])
def test_a_masked_row_whose_targets_have_weight_0_adds_nothing(classes, across):
    z = torch.randn(4, classes)
    z[1] = -float("inf")
    z = z.t().contiguous().t() if across else z
    weight, none = torch.ones(classes), {"reduction": "none"}
    weight[1] = 0
    y, perm = torch.ones(4, dtype=torch.int64), torch.arange(4)
    for eps in (0.0, 0.1):  # with smoothing, the other classes count
        got = m.mixed_cross_entropy(z, y, perm, 0.3, weight=weight, label_smoothing=eps, **none)
        assert got[1].isnan() if eps else got.tolist() == [0.0] * 4
    t = torch.rand(4, classes)
    t[1] = 0
    got = m.mixed_cross_entropy(z, t, perm, 0.3, **none)
    assert got[1] == 0 and got.isfinite().all()


@pytest.mark.deep
@pytest.mark.parametrize("isa", [ISAS[0], ISAS[-1]])  # the narrowest and the widest vectors
def test_same_bits_on_any_number_of_threads(isa):
    check_bits_by_threads(isa, __name__, "mixed_cross_entropy", len(KINDS))


@pytest.mark.deep
@pytest.mark.parametrize("isa", ISAS[:-1])
def test_every_path_on_every_instruction_set(isa):
    run_tests_with(isa, __file__)


def test_a_row_is_the_same_wherever_its_tile_begins():
    z, y = torch.randn(300, 21), torch.randint(0, 21, (300,))
    none = {"reduction": "none", "target_b": y.flip(0)}
    whole = m.mixed_cross_entropy(z, y, None, 0.3, **none)
    for cut in (1, 7, 131):
        part = m.mixed_cross_entropy(
            z[cut:], y[cut:], None, 0.3, reduction="none", target_b=y.flip(0)[cut:]
        )
        assert torch.equal(part, whole[cut:])
