"""Targets, sampling, errors, dispatch, compile."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import mmix_fast as m

PERM = torch.tensor([1, 2, 0])


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_mix_targets(backend, eps):
    y = torch.tensor([[0, 1], [0, -100], [3, 2]])
    q = (1 - eps) * F.one_hot(y.clamp(0), 4) + eps / 4
    q = (q * (y >= 0).unsqueeze(-1)).movedim(-1, 1)
    got = m.mix_targets(y, PERM, 0.25, num_classes=4, label_smoothing=eps)
    torch.testing.assert_close(got, 0.25 * q + 0.75 * q[PERM])
    t = torch.rand(3, 4)
    got = m.mix_targets(t, PERM, 0.25, label_smoothing=eps, dtype=torch.bfloat16)
    s = (1 - eps) * t + eps / 4
    torch.testing.assert_close(got, (0.25 * s + 0.75 * s[PERM]).bfloat16())


def test_mix_batch_checks_before_it_writes(backend):
    x = torch.randn(3, 2)
    before = x.clone()
    with pytest.raises(IndexError, match=r"target must hold labels in \[0, 3\].*got 9"):
        m.mix_batch_(x, torch.tensor([0, 9, 1]), PERM, 0.3, num_classes=4)
    assert torch.equal(x, before)
    out, soft = m.mix_batch_(x, torch.tensor([0, 2, 1]), PERM, 0.3, num_classes=4)
    assert out is x and soft.shape == (3, 4)


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 1.0, 1e3])
def test_beta_moments(alpha):
    lam = m.sample_mix(40000, alpha, per_sample=True).lam
    assert lam.dtype == torch.float32 and ((lam >= 0) & (lam <= 1)).all()
    sd = (1 / (4 * (2 * alpha + 1))) ** 0.5
    assert abs(lam.mean().item() - 0.5) < 5 * sd / 200
    assert abs(lam.std().item() / sd - 1) < 0.03


def test_pairings_and_seeds():
    assert m.sample_mix(4, 0).lam == 1
    assert m.sample_mix(3, 1.0, pairing="flip").perm.tolist() == [2, 1, 0]
    assert m.sample_mix(3, 1.0, pairing="roll").perm.tolist() == [2, 0, 1]
    for n in (2, 3, 9):
        perm = m.sample_mix(n, 1.0, pairing="derangement").perm
        assert (perm != torch.arange(n)).all() and perm.sort().values.equal(torch.arange(n))
    assert m.sample_mix(1, 1.0, pairing="derangement").perm.tolist() == [0]
    draws = [m.sample_mix(9, 1.0, generator=torch.Generator().manual_seed(3)) for _ in "ab"]
    assert torch.equal(draws[0].perm, draws[1].perm) and draws[0].lam == draws[1].lam
    assert draws[0].inverse[draws[0].perm].equal(torch.arange(9))
    perm, lam = m.Mix.identity(3)
    assert perm.tolist() == [0, 1, 2] and lam == 1


X, Y, Z = torch.randn(3, 2), torch.tensor([0, 1, 1]), torch.randn(3, 2)
LEAF = torch.randn(3, 2, requires_grad=True)
BAD = [
    (lambda: m.mix([1.0], PERM, 0.3), TypeError, "x must be a Tensor, got list"),
    (lambda: m.mix(X.int(), PERM, 0.3), TypeError, "x must be float16.*got int32 of shape"),
    (lambda: m.mix(torch.tensor(1.0), PERM, 0.3), ValueError, "x must have a batch dimension"),
    (lambda: m.mix(X, PERM, 0.3, dim=2), IndexError, r"dim must be in \[-2, 1\], got 2"),
    (
        lambda: m.mix_(X, PERM[:2].int(), 0.3),
        TypeError,
        r"perm must be int64 of shape \(3,\), got int32 of shape \(2,\)",
    ),
    (lambda: m.mix_(X, PERM[:2], 0.3), ValueError, r"perm must be int64 of shape \(3,\)"),
    (lambda: m.mix_(X, PERM.to("meta"), 0.3), ValueError, "perm must be on cpu, got meta"),
    (
        lambda: m.mix_(X, torch.tensor([0, 0, 3]), 0.3),
        ValueError,
        r"perm must be a permutation of 0..2, got \[0, 0, 3\]",
    ),
    (lambda: m.mix_(X, PERM, "a"), TypeError, "lam must be a float or a floating tensor, got str"),
    (lambda: m.mix_(X, PERM, torch.rand(2)), ValueError, r"lam must have shape \(\) or \(3,\)"),
    (lambda: m.mix_(LEAF, PERM, 0.3), RuntimeError, "x must not be a leaf"),
    (lambda: m.mix_(LEAF[:, :1], PERM, 0.3), RuntimeError, "x must not be a leaf"),
    (
        lambda: m.mix_(torch.zeros(1, 2).expand(3, 2), PERM, 0.3),
        RuntimeError,
        "x must not overlap itself",
    ),
    (
        lambda: m.mix_(X, PERM, torch.tensor(0.3, requires_grad=True)),
        RuntimeError,
        "mix_ gives no gradient to lam",
    ),
    (lambda: m.mix_targets(Y, PERM, 0.3), ValueError, "num_classes must be given"),
    (
        lambda: m.mixed_cross_entropy(Z, Y + 1, PERM, 0.3),
        IndexError,
        r"target must hold labels in \[0, 1\] or ignore_index=-100, got 2",
    ),
    (
        lambda: m.mixed_cross_entropy(Z, Y, PERM, 0.3, reduction="avg"),
        ValueError,
        "reduction must be one of none, mean, sum, got 'avg'",
    ),
    (lambda: m.mixed_cross_entropy(Z, Y, None, 0.3), ValueError, "exactly one of perm and target"),
    (lambda: m.mixed_cross_entropy(Z, Y[:2], PERM, 0.3), ValueError, "target must have shape"),
    (
        lambda: m.mixed_cross_entropy(Z, Y, PERM, 0.3, softcap=0.0),
        ValueError,
        "softcap must be greater than 0",
    ),
    (lambda: m.sample_mix(3, -1.0), ValueError, "alpha must be finite and at least 0"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input(backend, number):
    call, kind, message = BAD[number]
    before = X.clone(), LEAF.detach().clone()
    with pytest.raises(kind, match=message):
        call()
    assert torch.equal(X, before[0]) and torch.equal(LEAF, before[1])


def run(code, **env):
    import os

    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}
    )


def test_dispatch():
    with pytest.raises(ValueError, match="backend must be one of cpp, reference, got 'nope'"):
        m.use_backend("nope").__enter__()
    out = run("import mmix_fast.info as i; print(i.table())").stdout
    assert "cpp" in out and "reference" in out
    call = "import torch, mmix_fast as m; m.mix(torch.rand(2,2), torch.tensor([1,0]), .3);"
    bad = run(call, MMIX_FAST_BACKEND="nope")
    assert "backend must be one of" in bad.stderr


def test_missing_extension_says_what_to_do():
    gone = "import sys; sys.modules['mmix_fast._C'] = None; import torch, mmix_fast as m;"
    call = "m.mix(torch.rand(2,2), torch.tensor([1,0]), .3);"
    done = run(gone + call + call)
    assert done.returncode == 0
    assert done.stderr.count("pip install -e . --no-build-isolation") == 1
    forced = run(gone + "c = m.use_backend('cpp'); c.__enter__();" + call)
    assert "RuntimeError: backend 'cpp' cannot serve this call" in forced.stderr


def test_import_is_quick():
    code = "import torch, time; t = time.time(); import mmix_fast; print(time.time() - t)"
    assert min(float(run(code).stdout) for _ in range(3)) < 0.15


def test_one_compile_for_any_lam():
    torch._dynamo.reset()
    perm, y = torch.randperm(6), torch.randint(0, 5, (6,))
    frames = []

    def count(graph, inputs):
        frames.append(graph)
        return graph.forward

    def step(x, lam):
        h = m.mix_(x * 2, perm, lam)
        return m.mixed_cross_entropy(m.mix(h, perm, lam), y, perm, lam)

    compiled = torch.compile(step, fullgraph=True, backend=count)
    for lam in (0.1, 0.2, 0.35, 0.5, 0.77, 0.9):
        x = torch.randn(6, 5, requires_grad=True)
        got, want = compiled(x, lam), step(x, lam)
        torch.testing.assert_close(got, want)
    assert len(frames) <= 2


def test_inductor_gradients():
    torch._dynamo.reset()
    perm, y = torch.randperm(6), torch.randint(0, 5, (6,))

    def made(x, lam):
        return m.mixed_cross_entropy(m.mix_(x * 2, perm, lam), y, perm, lam)

    def given(x, lam):
        return m.mix_(x, perm, lam).sin().sum()

    lam = torch.tensor(0.3)
    for f in (made, given):
        compiled = torch.compile(f, fullgraph=True)
        x = torch.randn(6, 5, requires_grad=True)
        want = torch.autograd.grad(f(x * 1, lam), x)
        got = torch.autograd.grad(compiled(x * 1, lam), x)
        torch.testing.assert_close(got, want)


def test_opcheck():
    op = torch.ops.mmix_fast
    x, lam, y = torch.randn(3, 4), torch.tensor(0.3), torch.tensor([0, 1, 3])
    tail = (y, PERM, None, lam, None, -100, "mean", 0.1, 0.0, 0.0)
    _, stats, gradient = op.cross_entropy(x, *tail, True)
    targets = (4, 0.1, -100, torch.float32)
    torch.library.opcheck(op.mix.default, (x, PERM, lam, 0, False))
    torch.library.opcheck(op.mix_.default, (x.clone(), PERM, lam, 0))
    torch.library.opcheck(op.mix_targets.default, (y, PERM, lam, *targets))
    torch.library.opcheck(op.mix_batch_.default, (x.clone(), y, PERM, lam, *targets))
    up = torch.tensor(2.0)
    for with_gradient in (False, True):
        torch.library.opcheck(op.cross_entropy.default, (x, *tail, with_gradient))
    torch.library.opcheck(op.cross_entropy_backward.default, (up, stats, x, *tail))
    torch.library.opcheck(op.cross_entropy_backward_.default, (up, stats, x.clone(), *tail))
    torch.library.opcheck(op.cross_entropy_rescale_.default, (gradient, up, stats, x, *tail))


# Integers, since torch's own randn and sums differ between instruction sets.
SWEEP = """
import hashlib, torch, mmix_fast as m
torch.set_num_threads({threads}); torch.manual_seed(1)
for dt in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
    x = (torch.randint(-10**6, 10**6, (33, 5001)).double() / 999).to(dt)
    x[0, :3] = torch.tensor([float('inf'), 1e-7, 65504.]).to(dt)
    lam = torch.randint(1, 999, (33,)).double() / 999
    m.mix_(x, torch.arange(33).roll(1), lam)
    y = m.mix(x, torch.arange(33).flip(0), .3)
    for t in (x, y):
        print(hashlib.sha256(t.view(torch.uint8).numpy().tobytes()).hexdigest())
"""


@pytest.mark.deep
def test_same_bits_on_every_isa_and_thread_count():
    runs = [
        run(SWEEP.format(threads=t), ATEN_CPU_CAPABILITY=isa)
        for t in (1, 2)
        for isa in ("default", "avx2", "avx512")
    ]
    assert len({r.stdout for r in runs}) == 1 and runs[0].returncode == 0, runs[0].stderr


@pytest.mark.deep
def test_more_than_two_to_the_31_elements():
    x = torch.zeros(3, 2**30 + 8, dtype=torch.bfloat16)
    x[:, -1] = torch.tensor([1.0, 2.0, 4.0])
    m.mix_(x, PERM, 0.5)
    assert x[:, -1].tolist() == [1.5, 3.0, 2.5] and not x[:, :-1].any()
