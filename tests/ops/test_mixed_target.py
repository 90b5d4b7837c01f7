"""MixedTarget: every op that takes one gives what the dense targets give."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

import mmix_fast as m
from tests.support.cases import TOLERANCE
from tests.support.recording import Seen

B, C, EPS = 6, 5, 0.2
PERM = torch.tensor([1, 2, 0, 5, 3, 4])
PER_SAMPLE = torch.tensor([0.0, 1.0, 0.25, 0.5, 0.9, 0.1])
LAMS = {"float": 0.3, "0-dim": torch.tensor(0.3), "per sample": PER_SAMPLE, "zero": 0.0, "one": 1.0}


def labels(*shape):
    return torch.randint(0, C, (B, *shape))


def multi_hot():
    return torch.randint(0, 2, (B, C))


# name -> (targets, options of MixedTarget)
KINDS = {
    "labels": (labels, {"num_classes": C}),
    "uint8 labels": (lambda: labels().to(torch.uint8), {"num_classes": C}),
    "label maps": (lambda: labels(3), {"num_classes": C}),
    "probabilities": (lambda: torch.rand(B, C).softmax(1), {}),
    "multi-hot bool": (lambda: multi_hot().bool(), {"multi_label": True}),
    "multi-hot uint8": (lambda: multi_hot().to(torch.uint8), {"multi_label": True}),
    "multi-hot int64": (multi_hot, {"multi_label": True, "num_classes": C}),
    "multi-label float64": (lambda: torch.rand(B, C, dtype=torch.float64), {"multi_label": True}),
}
LOSSES = {
    m.mixed_cross_entropy: F.cross_entropy,
    m.mixed_binary_cross_entropy: F.binary_cross_entropy_with_logits,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def smoothed(target, options):
    """In float64, by hand."""
    eps = options.get("label_smoothing", 0.0)
    if not target.is_floating_point() and not options.get("multi_label"):
        target = F.one_hot(target.long(), C).movedim(-1, 1)
    return target.double() * (1 - eps) + eps * (0.5 if options.get("multi_label") else 1 / C)


def case(kind, lam, eps=EPS):
    """A MixedTarget, its dense targets by hand, and logits."""
    make, options = KINDS[kind]
    target, options = make(), {**options, "label_smoothing": eps}
    mixed = m.MixedTarget(target, PERM, lam, **options)
    q, weight = smoothed(target, options), torch.as_tensor(lam, dtype=torch.float64)
    if weight.ndim:
        weight = weight.reshape(-1, *[1] * (q.ndim - 1))
    z = torch.randn(q.shape, requires_grad=True)
    return mixed, weight * q + (1 - weight) * q[PERM], z


def check_loss(got, z, want):
    """The value and the gradient of a loss of z, against a function of float64 logits."""
    wide = z.detach().double().requires_grad_()
    expected = want(wide)
    tolerance = TOLERANCE[torch.float32]
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)
    (gradient,), (wanted,) = (
        torch.autograd.grad(got.sum(), z),
        torch.autograd.grad(expected.sum(), wide),
    )
    torch.testing.assert_close(gradient.double(), wanted, rtol=tolerance, atol=tolerance)


@every_kind
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize(("lam", "eps"), [*((name, EPS) for name in LAMS), ("float", 0.0)])
def test_losses_equal_those_of_dense_targets(backend, loss, kind, lam, eps):
    mixed, dense, z = case(kind, LAMS[lam], eps)
    check_loss(loss(z, mixed), z, lambda z: LOSSES[loss](z, dense))


@every_kind
@pytest.mark.parametrize("lam", LAMS.values(), ids=LAMS)
def test_dense_targets(backend, kind, lam):
    mixed, dense, _ = case(kind, lam)
    torch.testing.assert_close(mixed.soft(torch.float64), dense, rtol=0, atol=1e-7)


@every_kind
def test_options_of_the_cross_entropy(backend, kind):
    mixed, dense, z = case(kind, 0.3)
    rows = m.mixed_cross_entropy(z, mixed, reduction="none", softcap=2.0)
    check_loss(rows, z, lambda z: F.cross_entropy(2 * torch.tanh(z / 2), dense, reduction="none"))


@every_kind
def test_options_of_the_binary_cross_entropy(backend, kind):
    mixed, dense, z = case(kind, 0.3)
    options = {"reduction": "none", "pos_weight": torch.rand(C)}
    got = m.mixed_binary_cross_entropy(z, mixed, target_threshold=0.5, **options)
    options["pos_weight"] = options["pos_weight"].double().reshape(-1, *[1] * (z.ndim - 2))
    hard = (dense > 0.5).double()
    check_loss(got, z, lambda z: F.binary_cross_entropy_with_logits(z, hard, **options))


@every_kind
@pytest.mark.parametrize("topk", [1, 2])
@pytest.mark.parametrize("lam", LAMS.values(), ids=LAMS)
def test_accuracy_is_that_of_the_draw(kind, topk, lam):
    mixed, _, z = case(kind, lam)
    target = mixed.target.float() if mixed.multi_label else mixed.target
    want = m.Mix(PERM, lam).accuracy(z, target, topk=topk)
    assert torch.equal(mixed.accuracy(z, topk=topk), want)
    other = m.Mix.identity(B)  # the pairing and λ of the MixedTarget count
    assert torch.equal(other.accuracy(z, mixed, topk=topk), want)
    pairs = m.MixedTarget(target, None, lam, target_b=target[PERM], num_classes=C)
    assert torch.equal(pairs.accuracy(z, topk=topk), want)


@every_kind
def test_partners_given_directly(backend, kind):
    mixed, _, z = case(kind, PER_SAMPLE)
    pairs = m.MixedTarget(
        mixed.target,
        None,
        PER_SAMPLE,
        target_b=mixed.target[PERM],
        num_classes=mixed.num_classes,
        label_smoothing=EPS,
        multi_label=mixed.multi_label,
    )
    assert torch.equal(pairs.soft(), mixed.soft())
    for loss in LOSSES:
        torch.testing.assert_close(loss(z, pairs), loss(z, mixed), rtol=1e-6, atol=0)


def test_dtype_of_the_dense_targets():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        mixed = m.MixedTarget(labels(), PERM, 0.3, num_classes=C, dtype=dtype)
        assert mixed.soft().dtype == dtype and mixed.soft(torch.float64).dtype == torch.float64
        assert torch.equal(
            mixed.soft(), m.mix_targets(mixed.target, PERM, 0.3, num_classes=C, dtype=dtype)
        )


def test_ignored_labels_divide_as_in_pytorch(backend):
    """Their rows count in the mean over dense targets, which are 0 there, and not over labels."""
    z, y = torch.randn(B, C), torch.tensor([0, -100, 2, 4, -100, 1])
    mixed = m.MixedTarget(y, PERM, 0.3, num_classes=C)
    sparse, dense = m.mixed_cross_entropy(z, mixed), F.cross_entropy(z, mixed.soft())
    pair = 0.3 * F.cross_entropy(z, y) + 0.7 * F.cross_entropy(z, y[PERM])
    torch.testing.assert_close(sparse, pair)
    torch.testing.assert_close(dense * B / 4, sparse)


def test_the_binary_cross_entropy_ignores_no_label(backend):
    z, mixed = torch.randn(B, C), m.MixedTarget(labels() - 100, PERM, 0.3, num_classes=C)
    with pytest.raises(IndexError, match=r"target must hold labels in \[0, 4\].*got -"):
        m.mixed_binary_cross_entropy(z, mixed)


MIXED = m.MixedTarget(torch.zeros(B, dtype=torch.int64), PERM, 0.3, num_classes=C)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        ((MIXED, PERM), {}, ValueError, "^perm must not be given with a MixedTarget, which has"),
        ((MIXED, None, 0.5), {}, ValueError, "^lam must not be given with a MixedTarget"),
        ((MIXED, PERM, PER_SAMPLE), {}, ValueError, "^perm, lam must not be given"),
        ((MIXED,), {"target_b": MIXED.target}, ValueError, "^target_b must not be given"),
        ((MIXED,), {"label_smoothing": 0.1}, ValueError, "^label_smoothing must not be given"),
        ((MIXED.target, PERM), {}, TypeError, "^lam must be a float.*got NoneType None"),
        ((MIXED.target,), {}, TypeError, "^lam must be a float"),
        ((MIXED.target, None, 0.5), {}, ValueError, "^exactly one of perm and target_b must be"),
    ],
)
def test_arguments_beside_it(loss, arguments, options, kind, message):
    with pytest.raises(kind, match=message):
        loss(torch.zeros(B, C), *arguments, **options)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"num_classes": 4}, ValueError, r"logits must have the 4 classes.*got float32 of.*\(6, 5"),
        ({"target": labels()[:3]}, ValueError, r"target must have shape.*got int64.*\(3,\)"),
        ({"target": MIXED.target + C}, IndexError, r"target must hold labels in \[0, 4\]"),
        ({"perm": PERM[:3]}, ValueError, r"perm must be int64 of shape \(6,\)"),
        ({"perm": None}, ValueError, "exactly one of perm and target_b must be given, got neither"),
        ({"lam": "0.3"}, TypeError, "lam must be a float or a floating tensor"),
        ({"target": MIXED.target.to("meta")}, ValueError, "target must be on cpu, got meta"),
        ({"target": [0] * B}, TypeError, "target must be integer labels.*got list"),
        ({"target": [0] * B, "multi_label": True}, TypeError, "target must be a Tensor, got list"),
        ({"target": torch.rand(B), "label_smoothing": EPS}, ValueError, "target must have shape"),
        (
            {"target": torch.rand(B, C), "multi_label": True, "label_smoothing": 2.0},
            ValueError,
            r"label_smoothing must be in \[0, 1\], got 2.0",
        ),
    ],
)
def test_what_it_holds_is_checked_where_it_is_used(change, kind, message):
    fields = {"target": MIXED.target, "perm": PERM, "lam": 0.3, "num_classes": C}
    mixed = m.MixedTarget(**{**fields, **change})
    for use in (*LOSSES, m.Mix.identity(B).accuracy):
        with pytest.raises(kind, match=message):
            use(torch.zeros(B, C), mixed)


def test_dense_targets_of_neither_or_both_partners():
    for perm, target_b in ((None, None), (PERM, MIXED.target)):
        mixed = m.MixedTarget(MIXED.target, perm, 0.3, target_b=target_b, num_classes=C)
        with pytest.raises(ValueError, match="exactly one of perm and target_b must be given"):
            mixed.soft()
    with pytest.raises(ValueError, match="num_classes must be given for integer targets"):
        m.MixedTarget(MIXED.target, PERM, 0.3).soft()


def test_partner_labels_are_checked():
    pairs = m.MixedTarget(MIXED.target, None, 0.3, target_b=MIXED.target + C)
    for use in (*LOSSES, m.Mix.identity(B).accuracy):
        with pytest.raises(IndexError, match=r"target_b must hold labels in \[0, 4\].*got 5"):
            use(torch.zeros(B, C), pairs)


def test_it_runs_no_op():
    with Seen() as seen:
        mixed = m.MixedTarget(MIXED.target, PERM, 0.3, num_classes=C)
        assert len(mixed) == B and mixed.to("cpu") is mixed
    assert seen.sizes == []


@pytest.mark.parametrize("make", [float, torch.tensor], ids=["float", "tensor"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_as_an_argument_of_a_compiled_loss(backend, loss, make):
    """Right for every λ, with at most 2 graphs for Python floats and 1 for tensors."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for lam in (0.3, 0.5, 1.0, 0.0, 0.8):
        mixed = m.MixedTarget(labels(), PERM, make(lam), num_classes=C, label_smoothing=EPS)
        z = torch.randn(B, C, requires_grad=True)
        got, want = compiled(z, mixed), loss(z, mixed)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.autograd.grad(got, z), torch.autograd.grad(want, z))
    assert counter.frame_count <= (2 if make is float else 1)
