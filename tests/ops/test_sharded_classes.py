"""The loss of sharded classes equals that of one process, on every backend; see support/sharded."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmix_fast as m
from benchmarks.clock import Clock
from mmix_fast.reference import shard
from tests.support.cases import TOLERANCE
from tests.support.properties import property_test
from tests.support.sharded import of_every_shard

B, C = 6, 23
CUTS = [0, 5, 5, 16, C]  # four shards, one of them empty
INF, NAN = float("inf"), float("nan")
EVERY = {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0}
RUNS_ON_GPU = True


def split(z, cuts, grad=True):
    pieces = [z[:, a:b].detach().clone() for a, b in itertools.pairwise(cuts)]
    return [piece.requires_grad_() for piece in pieces] if grad else pieces


def compare(z, target, perm, lam, cuts=CUTS, tol=None, ups=(1.0, 0.7), **options):
    """Loss and gradients of every shard against those of all logits in float64."""
    tol = tol or TOLERANCE[z.dtype]
    wide = z.detach().double().requires_grad_()
    floating = {k: v.double() if _floats(v) else v for k, v in options.items()}
    with m.use_backend("reference"):
        target64 = target.double() if _floats(target) else target
        want = m.mixed_cross_entropy(
            wide, target64, perm, lam.double() if _floats(lam) else lam, **floating
        )
    for inplace in (False, True):
        pieces = split(z, cuts)
        losses, _ = of_every_shard(
            pieces, cuts, target, perm, lam, inplace_backward=inplace, **options
        )
        for up in ups[: 1 if inplace else 2]:
            grad = torch.full_like(want, up)
            if grad.numel() > 1 and up != 1:
                grad.view(-1)[:2] = torch.tensor([0.0, 1.0])
            (truth,) = torch.autograd.grad(want, wide, grad, retain_graph=True)
            for loss, piece, right in zip(losses, pieces, split(truth, cuts, False), strict=True):
                near = TOLERANCE[torch.float64 if z.dtype == torch.float64 else torch.float32]
                torch.testing.assert_close(
                    loss.double(), want.detach(), rtol=2 * near, atol=2 * near, equal_nan=True
                )
                (got,) = torch.autograd.grad(
                    loss, piece, grad.to(loss.dtype), retain_graph=not inplace
                )
                assert got.dtype == z.dtype
                torch.testing.assert_close(
                    got.double(), right, rtol=2 * tol, atol=2 * tol, equal_nan=True
                )


def _floats(t):
    return isinstance(t, torch.Tensor) and t.is_floating_point()


def labels():
    y = torch.randint(0, C, (B,))
    y[1], y[2] = y[0], -100  # equal labels, where perm pairs them; one that is ignored
    return y, torch.tensor([1, 0, 3, 2, 5, 4])


LAMS = [0.0, 0.3, 1.0, "per sample"]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("lam", LAMS, ids=str)
@pytest.mark.parametrize("options", [{}, EVERY], ids=["plain", "every option"])
def test_labels(backend, dtype, lam, options):
    # Each reduction meets each dtype and each λ.
    reduction = ("mean", "sum", "none")[(list(TOLERANCE).index(dtype) + LAMS.index(lam)) % 3]
    z = (2 * torch.randn(B, C)).to(dtype)
    y, perm = labels()
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    if lam == "per sample":
        lam = torch.tensor([0.2, 0.9, 0.0, 1.0, 1.5, 0.5], dtype=acc)
    compare(z, y, perm, lam, reduction=reduction, **options)
    if options:
        options = options | {"weight": torch.rand(C).to(dtype)}
        compare(z, y, None, lam, target_b=y.flip(0), reduction=reduction, **options)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("options", [{}, EVERY], ids=["plain", "every option"])
def test_probabilities(backend, reduction, options):
    z, t, perm = torch.randn(B, C), torch.rand(B, C).softmax(1), torch.randperm(B)
    compare(z, t, perm, 0.3, reduction=reduction, **options)
    lam = torch.tensor([0.2, 0.9, 0.0, 1.0, 1.5, 0.5])
    weight = torch.rand(C)
    compare(z, t, None, lam, target_b=t.flip(0), reduction=reduction, weight=weight, **options)


def test_a_label_map(backend):
    z, y = torch.randn(3, C, 4), torch.randint(0, C, (3, 4))
    compare(z, y, torch.tensor([2, 0, 1]), torch.rand(3), **EVERY)
    compare(z, y, torch.tensor([2, 0, 1]), 0.3, reduction="none")
    pieces = split(z, CUTS)
    losses, _ = of_every_shard(pieces, CUTS, y, torch.arange(3), 0.3, reduction="none")
    (expanded,) = torch.autograd.grad(losses[0].sum(), pieces[0], retain_graph=True)  # stride 0
    (filled,) = torch.autograd.grad(losses[0], pieces[0], torch.ones(3, 4))
    assert torch.equal(expanded, filled)


def test_masked_and_extreme_logits(backend):
    z = 2 * torch.randn(B, C)
    y, perm = torch.tensor([1, 17, 6, 20, 8, 22]), torch.tensor([0, 1, 2, 3, 4, 5])
    z[0, 5:] = -INF  # nothing but -inf in all shards but the first
    z[1, :16] = -INF  # and in all but the last
    z[2] += 1e4
    z[3] -= 1e4
    z[4, 16:] -= 300  # far below the pivot of the other shards
    compare(z, y, perm, 0.3, reduction="none", tol=1e-5)
    pieces = split(z, CUTS, False)
    pieces[3][2, 0] = NAN
    pieces[0][5] = INF
    bad = torch.cat(pieces, 1)
    compare(bad, y, perm, 0.3, reduction="none", tol=1e-5)
    # A row that does not count, whatever its logits hold; and a label in a shard of only -inf.
    own = y.clone()
    own[2], own[1] = -100, 3
    compare(bad, own, perm, 0.3, reduction="none", tol=1e-5, ups=())
    pieces = split(bad, CUTS)
    losses, _ = of_every_shard(pieces, CUTS, own, perm, 0.3, reduction="none")
    gradient = torch.autograd.grad(losses[3].sum(), pieces[3])[0]
    assert losses[3][1] == INF and losses[3][2] == 0 and not gradient[2].any()
    # Where the label has no weight: NaN of a NaN logit, 0 of a row of only -inf.
    weight = torch.ones(C)
    weight[y[2:4]], bad[3] = 0, -INF
    losses, _ = of_every_shard(
        split(bad, CUTS, False), CUTS, y, perm, 0.3, reduction="none", weight=weight
    )
    assert all(loss[2].isnan() and loss[3] == 0 for loss in losses)
    # The label's own logit is -inf: the loss is inf, as in PyTorch; and all of a row -inf.
    z[0, 1], z[5] = -INF, -INF
    losses, _ = of_every_shard(split(z, CUTS, False), CUTS, y, perm, 0.3, reduction="none")
    want = torch.nn.functional.cross_entropy(z, y, reduction="none")
    for loss in losses:
        torch.testing.assert_close(loss, want, equal_nan=True, rtol=1e-5, atol=1e-3)


def test_masked_classes_under_a_softcap(backend):
    z = 5 * torch.randn(B, C)
    z[:, [3, 20]] = -INF
    compare(z, torch.tensor([1, 17, 6, 21, 8, 22]), torch.randperm(B), 0.3, softcap=3.0)


def test_values_that_the_host_does_not_read_poison_their_rows():
    """In plain PyTorch, as on a GPU or in a compiled graph."""
    z, ignored = torch.randn(4, 5), -100
    y, perm = torch.tensor([1, 9, ignored, ignored]), torch.tensor([0, 1, 2, 7])
    args = y, perm, None, torch.tensor(0.3), None, None, ignored, "sum", 0.1, 0.0, 0.0, 4, 9
    part = shard.cross_entropy_part(z, *args)
    assert part[:, 3].isnan().tolist() == [False, True, False, True]  # label 9; index 7
    assert part[2].tolist() == [0, 0, 0, 0]
    stats = torch.stack([part[:, 0], part[:, 1], part[:, 3]], 1)
    gradient = shard.cross_entropy_backward(torch.ones(()), stats, z, *args)
    assert gradient.isnan().all(1).tolist() == [False, True, False, True]
    assert not gradient[2].any()


def test_a_class_weight_of_zero_at_a_masked_class(backend):
    z, weight = torch.randn(B, C), torch.rand(C)
    z[:, 7], weight[7] = -INF, 0
    y, perm = labels()
    compare(z, y, perm, 0.3, weight=weight, label_smoothing=0.1)
    y[0] = 7
    compare(z, y, perm, 0.3, weight=weight, reduction="none")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_means_over_nothing_and_no_rows(backend, reduction):
    z = torch.randn(B, C)
    y, perm = torch.full((B,), -100), torch.arange(B)
    compare(z, y, perm, 0.3, reduction=reduction, z_loss=0.1)
    y[0] = 3
    for lam in (0.0, 0.3, 1.0):
        compare(z, y, None, lam, target_b=torch.full((B,), -100), reduction=reduction)
        compare(z, torch.full((B,), -100), None, lam, target_b=y, reduction=reduction)
    empty = torch.zeros(0, dtype=torch.int64)
    compare(z[:0], empty, empty, 0.3, reduction=reduction)


@settings(property_test, max_examples=100)
@given(
    cuts=st.lists(st.integers(0, C), max_size=4).map(lambda inner: [0, *sorted(inner), C]),
    seed=st.integers(0, 99),
    lam=st.sampled_from([0.0, 0.4, 1.0, 1.7]),
    eps=st.sampled_from([0.0, 0.2]),
)
def test_any_cuts_give_the_same(cuts, seed, lam, eps):
    torch.manual_seed(seed)
    y, perm = labels()
    compare(torch.randn(B, C).double(), y, perm, lam, cuts=cuts, label_smoothing=eps, z_loss=0.1)


@pytest.mark.on_cpu
def test_bytes_on_the_wire_and_in_memory(backend):
    if backend == "reference":
        pytest.skip("plain PyTorch allocates what its ops do")
    b, c = 64, 4000
    cuts, z = [0, c // 2, c], torch.randn(64, 4000)
    y, perm = torch.randint(0, c, (b,)), torch.randperm(b)
    _, parts = of_every_shard(split(z, cuts, False), cuts, y, perm, 0.3)
    assert all(part.nbytes == 16 * b for part in parts)
    _, parts = of_every_shard(split(z.double(), cuts, False), cuts, y, perm, 0.3)
    assert all(part.nbytes == 32 * b for part in parts)
    pieces = split(z, cuts)

    def step(inplace):
        losses, _ = of_every_shard(pieces, cuts, y, perm, 0.3, inplace_backward=inplace)
        return torch.autograd.grad(losses[0], pieces[0])

    step(False)
    assert Clock().peak_bytes(lambda: step(False)) <= pieces[0].nbytes + 256 * b + 16384
    assert Clock().peak_bytes(lambda: step(True)) <= 256 * b + 16384


def test_in_place_bumps_the_version_and_refuses_a_second_backward(backend):
    y, perm = labels()
    leaves = split(torch.randn(B, C), CUTS)
    pieces = [leaf * 1 for leaf in leaves]
    losses, _ = of_every_shard(pieces, CUTS, y, perm, 0.3, inplace_backward=True)
    version = pieces[0]._version
    (got,) = torch.autograd.grad(losses[0], pieces[0], retain_graph=True)
    assert got.data_ptr() == pieces[0].data_ptr() and pieces[0]._version > version
    with pytest.raises(RuntimeError):
        torch.autograd.grad(losses[0], pieces[0])


def test_no_double_backward_and_no_gradient_that_is_dropped(backend):
    y, perm = labels()
    pieces = split(torch.randn(B, C), CUTS)
    losses, _ = of_every_shard(pieces, CUTS, y, perm, 0.3)
    with pytest.raises(RuntimeError, match="no double backward"):
        torch.autograd.grad(losses[0], pieces[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no gradient for lam"):
        of_every_shard(pieces, CUTS, y, perm, torch.tensor(0.3, requires_grad=True))
    with pytest.raises(RuntimeError, match="no gradient for weight"):
        of_every_shard(pieces, CUTS, y, perm, 0.3, weight=torch.rand(C, requires_grad=True))
