"""Gradients of mixed_linear_cross_entropy: which are made, how exact they are, and how often."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import mmix_fast as m
from mmix_fast import linear_chunks
from tests.support.linear import arguments, chunked, head, unchunked

RUNS_ON_GPU = True
FLAGS = list(itertools.product((False, True), repeat=3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("up", [1.0, 0.7, 1024.0])
def test_no_less_exact_than_all_logits_at_once(backend, dtype, up):
    """Against float64. A power of two as upstream adds no rounding; another adds one to 16 bits."""
    n = 400
    target, perm, lam, _ = arguments("per sample", dtype=torch.float32, n=n)
    options = {"label_smoothing": 0.1}
    tensors = head(dtype, n)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    wide = torch.autograd.grad(up * unchunked(exact, target, perm, lam.double(), **options), exact)
    x, w, b = tensors
    plain = m.mixed_cross_entropy(F.linear(x, w, b), target, perm, lam, **options)
    ours = chunked(tensors, target, perm, lam, chunk_size=16, **options)
    exactly = dtype != torch.float16 and up != 0.7
    rest = zip(
        torch.autograd.grad(up * plain, tensors),
        torch.autograd.grad(up * ours, tensors),
        wide,
        strict=True,
    )
    for of_plain, of_ours, truth in rest:
        assert of_ours.dtype == dtype
        error, ours_error = ((g.double() - truth).norm() for g in (of_plain, of_ours))
        assert ours_error <= (1.01 if exactly else 1.2) * error + 1e-7 * truth.norm()


def test_the_gradient_of_a_mean_in_float16_keeps_its_digits(backend):
    """1/N of a probability would be a subnormal float16, long before a scaler multiplies it."""
    n, up = 20_000, 65536.0
    x, w = (2 * t.detach() for t in head(torch.float16, n, bias=False))
    # Labels that the head predicts well: small gradients.
    tensors, target = [x.requires_grad_(), w.requires_grad_()], F.linear(x, w).argmax(1)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    truth = torch.autograd.grad(up * unchunked(exact, target, torch.arange(n), 0.3), exact)
    loss = chunked(tensors, target, torch.arange(n), 0.3, chunk_size=256)
    assert loss.dtype == torch.float32
    for got, want in zip(torch.autograd.grad(up * loss, tensors), truth, strict=True):
        assert (got.double() - want).norm() < 3e-3 * want.norm()


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
    run, of_logits = linear_chunks.run_chunks, []

    def spied(step, *rest):
        return run(lambda z, *at: of_logits.append(at[-1]) or step(z, *at), *rest)

    monkeypatch.setattr(linear_chunks, "run_chunks", spied)
    loss = chunked(tensors, target, perm, lam, chunk_size=5, **options)
    monkeypatch.undo()
    assert of_logits == [any(wanted)] * 3  # in each chunk
    assert products.count("w") == 3 * wanted[1] and products.count("x") == 3 * wanted[0]
    assert loss.requires_grad == any(wanted)
    if wanted[1] and not wanted[0]:
        truth = torch.autograd.grad(unchunked(tensors, target, perm, lam), tensors[1])
        torch.testing.assert_close(torch.autograd.grad(loss, tensors[1]), truth)


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

    def step(x, w, b, lam, target=target, perm=perm):
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
    for n in (20, 40, 60):
        more = arguments("labels", dtype=torch.float32, n=n)[:2]
        tensors = head(torch.float32, n)
        torch.testing.assert_close(compiled(*tensors, 0.3, *more), step(*tensors, 0.3, *more))
    assert len(graphs) <= 4  # one more graph has a symbolic number of rows
