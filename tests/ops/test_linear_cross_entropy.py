"""mixed_linear_cross_entropy: the loss of F.linear's logits, some rows at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmix_fast as m
from benchmarks.clock import Clock
from mmix_fast import linear_chunks
from tests.support.linear import KINDS, C, D, N, arguments, chunked, head, unchunked
from tests.support.properties import property_test

RUNS_ON_GPU = True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("chunk_size", [5, None])
def test_equals_the_loss_of_all_logits(backend, kind, reduction, chunk_size):
    target, perm, lam, options = arguments(kind)
    options |= {"reduction": reduction}
    tensors = head()
    want = unchunked(tensors, target, perm, lam, **options)
    got = chunked(tensors, target, perm, lam, chunk_size=chunk_size, **options)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for up in (1.0, 0.7):
        gradients = torch.autograd.grad(got * up, tensors, retain_graph=True)
        truths = torch.autograd.grad(want * up, tensors, retain_graph=True)
        for gradient, truth in zip(gradients, truths, strict=True):
            torch.testing.assert_close(gradient, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.on_cpu
def test_no_more_rows_than_asked_for(backend):
    if backend == "reference":
        pytest.skip("it holds all logits")
    n, classes = 96, 5000
    x, w = torch.randn(n, D, requires_grad=True), torch.randn(classes, D, requires_grad=True)
    y, perm = torch.randint(0, classes, (n,)), torch.randperm(n)

    def step(rows):
        loss = m.mixed_linear_cross_entropy(x, w, y, perm, 0.3, chunk_size=rows)
        return torch.autograd.grad(loss, (x, w))

    results = x.nbytes + w.nbytes
    for rows in (1, 8, 32):
        step(rows)
        assert (
            Clock().peak_bytes(lambda rows=rows: step(rows)) <= results + rows * classes * 4 + 16384
        )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_rows_and_nothing_that_counts(backend, reduction):
    for target in (torch.zeros(0, dtype=torch.int64), torch.zeros(0, C)):
        tensors = head(torch.float32, n=0)
        perm = torch.arange(0)
        want = unchunked(tensors, target, perm, 0.3, reduction=reduction)
        got = chunked(tensors, target, perm, 0.3, reduction=reduction)
        torch.testing.assert_close(got, want, equal_nan=True)
        for g in torch.autograd.grad(got, tensors):
            assert not g.nan_to_num(1).any() and g.numel() in (0, C * D, C)
    tensors, ignored = head(), torch.full((N,), -100)
    got = chunked(tensors, ignored, torch.randperm(N), 0.3, reduction=reduction, chunk_size=4)
    assert got.isnan() if reduction == "mean" else got == 0
    assert not any(g.any() for g in torch.autograd.grad(got, tensors))
    y = torch.randint(0, C, (N,))
    for own, other, lam in ((y, ignored, 0.3), (ignored, y, 0.3), (ignored, y, 0.0)):
        rest = own, None, lam
        want = unchunked(tensors, *rest, target_b=other, reduction=reduction)
        got = chunked(tensors, *rest, target_b=other, reduction=reduction, chunk_size=4)
        torch.testing.assert_close(got, want, equal_nan=True)


def test_a_mixed_target(backend):
    target, perm, lam, _ = arguments("labels")
    tensors = head()
    mixed = m.MixedTarget(target, perm, lam, num_classes=C, label_smoothing=0.1)
    want = unchunked(tensors, target, perm, lam, label_smoothing=0.1)
    torch.testing.assert_close(chunked(tensors, mixed, None, None), want)
    with pytest.raises(ValueError, match="MixedTarget"):
        chunked(tensors, mixed, perm, None)


ROWS = st.integers(0, 9)


@settings(property_test, max_examples=100)
@given(n=ROWS, chunk=st.integers(1, 10), seed=st.integers(0, 99), lam=st.sampled_from([0, 0.3, 1]))
def test_any_chunk_size_gives_the_same(n, chunk, seed, lam):
    torch.manual_seed(seed)
    target, perm, _, options = arguments("labels", n=max(n, 6))
    target, perm = target[:n], torch.randperm(n)
    tensors = head(n=n)
    got = chunked(tensors, target, perm, lam, chunk_size=chunk, reduction="sum", **options)
    want = unchunked(tensors, target, perm, lam, reduction="sum", **options)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    # Equivariance: permuted samples, with their pairing, give the same gradients, permuted.
    order = torch.randperm(n)
    moved = [tensors[0].detach()[order].requires_grad_(), *tensors[1:]]
    pairing = order.argsort()[perm[order]]
    again = chunked(moved, target[order], pairing, lam, chunk_size=chunk, reduction="sum")
    torch.testing.assert_close(again, got, rtol=1e-12, atol=1e-12)
    of_moved = torch.autograd.grad(again, moved)
    of_given = torch.autograd.grad(got, tensors)
    torch.testing.assert_close(of_moved[0], of_given[0][order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(of_moved[1], of_given[1], rtol=1e-12, atol=1e-12)


def test_the_default_chunk_takes_about_the_memory_of_the_input():
    size = linear_chunks.default_chunk_size
    cpu = torch.device("cpu")
    assert size(4096, 768, 21841, cpu) == 256  # 145 rows take the input's memory
    assert size(65536, 4096, 131072, cpu) == 2048
    assert size(8, 16, 1_000_000, cpu) == 256  # more than there are: one chunk
    assert size(100, 768, 0, cpu) >= 100


@pytest.mark.parametrize("chunk_size", [3, 100])
def test_bad_values_poison_or_raise(chunk_size):
    """Where values cannot be read, a bad index or label makes its row NaN, and nothing else."""
    y, perm, lam, _ = arguments("labels", dtype=torch.float32)
    y[2] = 0
    tensors = head(torch.float32)
    for change in ("perm", "label"):
        bad_y, bad_perm = y.clone(), perm.clone()
        if change == "perm":
            bad_perm[4] = N + 3
        else:
            bad_y[4] = C
        with pytest.raises((ValueError, IndexError)):
            chunked(tensors, bad_y, bad_perm, lam)
        with m.use_backend("reference"), pytest.raises((ValueError, IndexError)):
            chunked(tensors, bad_y, bad_perm, lam)
    targets = linear_chunks.ChunkTargets(y, bad_perm.index_fill(0, torch.tensor(4), N), None, lam)
    *_, lams = targets.of(0, N)
    assert lams.isnan().nonzero().tolist() == [[4]]
