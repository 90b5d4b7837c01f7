"""mixed_linear_cross_entropy: the loss of F.linear's logits, some rows at a time."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import mmix_fast as m
from benchmarks.clock import Clock
from mmix_fast import linear_chunks
from tests.support.cases import TOLERANCE

N, D, C = 13, 6, 17
RUNS_ON_GPU = True
FLAGS = list(itertools.product((False, True), repeat=3))


def head(dtype=torch.float64, n=N, bias=True):
    tensors = torch.randn(n, D), torch.randn(C, D), torch.randn(C)
    return [t.to(dtype).requires_grad_() for t in tensors[: 2 + bias]]


def arguments(kind, dtype=torch.float64, n=N):
    """target, perm, lam and options."""
    y, other = torch.randint(0, C, (n,)), torch.randint(0, C, (n,))
    y[2], other[5] = -100, -100
    perm, lam = torch.randperm(n), torch.tensor(0.3, dtype=dtype)
    per_sample = torch.rand(n, dtype=dtype)
    per_sample[:3] = torch.tensor([0.0, 1.0, 1.5])
    soft = torch.rand(n, C, dtype=dtype)
    every = {
        "label_smoothing": 0.1,
        "z_loss": 0.1,
        "softcap": 3.0,
        "weight": torch.rand(C).to(dtype),
    }
    return {
        "labels": (y, perm, lam, {}),
        "lam 0": (y, perm, 0.0, every),
        "lam 1": (y, perm, 1.0, every),
        "per sample": (y, perm, per_sample, every),
        "partners": (y, None, lam, {"target_b": other, **every}),  # two divisors of a mean
        "probabilities": (soft, perm, lam, every),
        "pairs of probabilities": (soft, None, per_sample, {"target_b": soft.flip(0)}),
    }[kind]


KINDS = [
    "labels",
    "lam 0",
    "lam 1",
    "per sample",
    "partners",
    "probabilities",
    "pairs of probabilities",
]


def unchunked(tensors, target, perm, lam, **options):
    x, w, *b = tensors
    with m.use_backend("reference"):
        return m.mixed_cross_entropy(F.linear(x, w, *b), target, perm, lam, **options)


def chunked(tensors, target, perm, lam, **options):
    x, w, *b = tensors
    return m.mixed_linear_cross_entropy(
        x, w, target, perm, lam, linear_bias=b[0] if b else None, **options
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("chunk_size", [1, 5, 100, None])
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("up", [1.0, 0.7, 1024.0])
def test_no_less_exact_than_all_logits_at_once(backend, dtype, up):
    """Against float64, summed over the entries, with a little room for luck."""
    n = 200
    target, perm, lam, options = arguments("per sample", dtype=torch.float32, n=n)
    options |= {"weight": None}
    tensors = head(dtype, n)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    wide = torch.autograd.grad(up * unchunked(exact, target, perm, lam.double(), **options), exact)
    x, w, b = tensors
    plain = m.mixed_cross_entropy(F.linear(x, w, b), target, perm, lam, **options)
    ours = chunked(tensors, target, perm, lam, chunk_size=32, **options)
    rest = zip(
        torch.autograd.grad(up * plain, tensors),
        torch.autograd.grad(up * ours, tensors),
        wide,
        strict=True,
    )
    for of_plain, of_ours, truth in rest:
        assert of_ours.dtype == dtype
        error, ours_error = ((g.double() - truth).norm() for g in (of_plain, of_ours))
        assert ours_error <= 1.3 * error + TOLERANCE[dtype] * 1e-2 * truth.norm()


def test_the_gradient_of_a_mean_in_float16_keeps_its_digits(backend):
    """1/N of a probability would be a subnormal float16, long before a scaler multiplies it."""
    n = 2000
    target, perm, lam, _ = arguments("labels", dtype=torch.float32, n=n)
    tensors = head(torch.float16, n, bias=False)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    up = 65536.0
    truth = torch.autograd.grad(up * unchunked(exact, target, perm, lam.double()), exact)
    loss = chunked(tensors, target, perm, lam, chunk_size=256)
    assert loss.dtype == torch.float32
    for got, want in zip(torch.autograd.grad(up * loss, tensors), truth, strict=True):
        assert (got.double() - want).norm() < 2e-3 * want.norm()


@pytest.mark.parametrize("wanted", FLAGS)
def test_only_the_products_that_are_needed(backend, wanted, monkeypatch):
    if backend == "reference":
        pytest.skip("it holds all logits")
    target, perm, lam, options = arguments("labels")
    tensors = [t.requires_grad_(want) for t, want in zip(head(), wanted, strict=True)]
    products = []
    kept, added = torch.mm, linear_chunks._add_product
    monkeypatch.setattr(linear_chunks, "_add_product", lambda *a: products.append("w") or added(*a))
    monkeypatch.setattr(
        torch, "mm", lambda *a, **kw: products.append("x") if "out" in kw else kept(*a, **kw)
    )
    loss = chunked(tensors, target, perm, lam, chunk_size=5, **options)
    monkeypatch.undo()
    assert products.count("w") == 3 * wanted[1] and products.count("x") == 3 * wanted[0]
    assert loss.requires_grad == any(wanted)
    if wanted[1] and not wanted[0]:
        truth = torch.autograd.grad(unchunked(tensors, target, perm, lam), tensors[1])
        torch.testing.assert_close(torch.autograd.grad(loss, tensors[1]), truth)


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


@pytest.mark.on_cpu
def test_autocast_is_followed(backend):
    target, perm, lam, options = arguments("per sample", dtype=torch.float32)
    options |= {"weight": None}
    tensors = head(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        x, w, b = tensors
        want = m.mixed_cross_entropy(F.linear(x, w, b), target, perm, lam, **options)
        got = chunked(tensors, target, perm, lam, chunk_size=4, **options)
    assert got.dtype == want.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    pairs = zip(torch.autograd.grad(got, tensors), torch.autograd.grad(want, tensors), strict=True)
    for gradient, truth in pairs:
        assert gradient.dtype == torch.float32
        assert (gradient - truth).norm() < 1e-2 * truth.norm()


def test_a_second_backward_and_gradients_that_the_caller_changes(backend):
    target, perm, lam, options = arguments("labels")
    tensors = head()
    loss = chunked(tensors, target, perm, lam, **options)
    first = torch.autograd.grad(loss, tensors, retain_graph=True)
    kept = [g.clone() for g in first]
    for g in first:
        g.zero_()
    for again, want in zip(torch.autograd.grad(loss * 2, tensors), kept, strict=True):
        torch.testing.assert_close(again, 2 * want)


def test_gradcheck_twice_and_batched(backend):
    target, perm, lam, options = arguments("per sample")

    def loss(*tensors):
        return chunked(tensors, target, perm, lam, chunk_size=5, **options)

    tensors = head()
    assert torch.autograd.gradcheck(loss, tensors, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(loss, tensors)


def test_what_only_plain_pytorch_serves():
    """Gradients of lam, class weights and probabilities, and torch.func."""
    target, perm, _, options = arguments("probabilities")
    tensors, lam = head(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    leaves = lam, target.requires_grad_(), options["weight"].requires_grad_()
    got = chunked(tensors, target, perm, lam, **options)
    want = unchunked(tensors, target, perm, lam, **options)
    pairs = zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True)
    for gradient, truth in pairs:
        torch.testing.assert_close(gradient, truth)
    plain = [t.detach() for t in tensors]
    rest = target.detach(), perm, 0.3
    of_func = torch.func.grad(lambda x: chunked([x, *plain[1:]], *rest))(plain[0])
    of_autograd = torch.autograd.grad(chunked(tensors, *rest), tensors[0])[0]
    torch.testing.assert_close(of_func, of_autograd)


def test_compiled(backend):
    target, perm, _, options = arguments("labels", dtype=torch.float32)
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def step(x, w, b, lam):
        return chunked([x, w, b], target, perm, lam, **options)

    compiled = torch.compile(step, fullgraph=True, backend=count)
    for lam in (0.1, 0.25, 0.7, 1.0):
        tensors = head(torch.float32)
        got, want = compiled(*tensors, lam), step(*tensors, lam)
        torch.testing.assert_close(got, want)
        pairs = zip(
            torch.autograd.grad(got * 3, tensors),
            torch.autograd.grad(want * 3, tensors),
            strict=True,
        )
        for gradient, truth in pairs:
            torch.testing.assert_close(gradient, truth)
    assert len(graphs) <= 2


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


def test_a_mixed_target(backend):
    target, perm, lam, _ = arguments("labels")
    tensors = head()
    mixed = m.MixedTarget(target, perm, lam, num_classes=C, label_smoothing=0.1)
    want = unchunked(tensors, target, perm, lam, label_smoothing=0.1)
    torch.testing.assert_close(chunked(tensors, mixed, None, None), want)
    with pytest.raises(ValueError, match="MixedTarget"):
        chunked(tensors, mixed, perm, None)


ROWS = st.integers(0, 9)


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
