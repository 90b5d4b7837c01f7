"""mix_targets and mix_batch_: values, dtypes, gradients."""

import pytest
import torch
import torch.nn.functional as F

import mmix_fast as m
from tests.support.cases import DTYPES

RUNS_ON_GPU = True


@pytest.fixture
def perm(backend):  # after the backend, which sets the default device
    return torch.tensor([1, 2, 0])


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_mix_targets(backend, perm, eps):
    y = torch.tensor([[0, 1], [0, -100], [3, 2]])
    q = (1 - eps) * F.one_hot(y.clamp(0), 4) + eps / 4
    q = (q * (y >= 0).unsqueeze(-1)).movedim(-1, 1)
    got = m.mix_targets(y, perm, 0.25, num_classes=4, label_smoothing=eps)
    torch.testing.assert_close(got, 0.25 * q + 0.75 * q[perm])
    t = torch.rand(3, 4)
    got = m.mix_targets(t, perm, 0.25, label_smoothing=eps, dtype=torch.bfloat16)
    s = (1 - eps) * t + eps / 4
    torch.testing.assert_close(got, (0.25 * s + 0.75 * s[perm]).bfloat16())


@pytest.mark.on_cpu  # a GPU's kernels poison the row instead
def test_mix_batch_checks_before_it_writes(backend, perm):
    x = torch.randn(3, 2)
    before = x.clone()
    with pytest.raises(IndexError, match=r"target must hold labels in \[0, 3\].*got 9"):
        m.mix_batch_(x, torch.tensor([0, 9, 1]), perm, 0.3, num_classes=4)
    assert torch.equal(x, before)
    out, soft = m.mix_batch_(x, torch.tensor([0, 2, 1]), perm, 0.3, num_classes=4)
    assert out is x and soft.shape == (3, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 3)])
def test_labels_of_any_shape(backend, perm, dtype, per_sample, shape):
    y = torch.randint(0, 4, shape)
    y[0] = y[1]  # the two probabilities of equal labels add up
    lam = torch.rand(3) if per_sample else torch.tensor(0.3)
    q = F.one_hot(y, 4).movedim(-1, 1).double()
    share = lam.double().reshape(-1, *[1] * (q.ndim - 1)) if per_sample else lam.double()
    want = share * q + (1 - share) * q[perm]
    got = m.mix_targets(y, perm, lam, num_classes=4, dtype=dtype)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=0, atol=float(torch.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
def test_probabilities_of_any_dtype(backend, perm, dtype, target_dtype):
    t = torch.rand(3, 5, 2).to(target_dtype)
    s = 0.9 * t.double() + 0.1 / 5
    want = 0.3 * s + 0.7 * s[perm]
    got = m.mix_targets(t, perm, 0.3, label_smoothing=0.1, dtype=dtype)
    wide = torch.float64 in (dtype, target_dtype)
    coarsest = torch.finfo(dtype if wide or dtype != torch.float64 else torch.float32)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2 * float(coarsest.eps))


def test_lam_of_nan_0_and_1(backend, perm):
    y = torch.tensor([0, 1, 1])
    assert m.mix_targets(y, perm, float("nan"), num_classes=2).isnan().all()
    for lam, want in ((1.0, y), (0.0, y[perm])):
        assert torch.equal(m.mix_targets(y, perm, lam, num_classes=2), F.one_hot(want, 2).float())
    t = torch.tensor([[float("inf"), 0.0], [0.2, 0.8], [0.5, 0.5]])
    assert m.mix_targets(t, perm, torch.tensor([0.0, 0.5, 1.0])).isfinite().all()


def test_the_gradient_to_a_float_target_is_right_or_the_call_raises(backend, perm):
    t = torch.rand(3, 4, requires_grad=True)
    try:
        out = m.mix_targets(t, perm, 0.3)
    except RuntimeError as error:
        assert "no gradient for target" in str(error)
        return
    up = torch.rand(3, 4)
    want = 0.3 * up + 0.7 * up[perm.argsort()]
    torch.testing.assert_close(torch.autograd.grad(out, t, up)[0], want)


@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_mix_batch_equals_mix_and_mix_targets(backend, perm, x_dtype, dtype):
    """λ is rounded separately for x and for the targets: one may be float64, the other not."""
    y = torch.tensor([[0, 3], [1, -100], [2, 2]])
    x = torch.randn(3, 7).to(x_dtype)
    for lam in (0.1, torch.rand(3, dtype=torch.float64)):
        want = m.mix(x, perm, lam)
        soft = m.mix_targets(y, perm, lam, num_classes=4, label_smoothing=0.1, dtype=dtype)
        out, got = m.mix_batch_(x, y, perm, lam, num_classes=4, label_smoothing=0.1, dtype=dtype)
        assert out is x and torch.equal(x, want) and torch.equal(got, soft)


def test_mix_batch_has_the_gradient_of_mix(backend, perm):
    x = torch.randn(3, 4, requires_grad=True)
    up = torch.randn(3, 4)
    out, soft = m.mix_batch_(x * 1, torch.tensor([0, 1, 1]), perm, 0.3, num_classes=2)
    assert not soft.requires_grad
    want = torch.autograd.grad(m.mix(x, perm, 0.3), x, up)
    torch.testing.assert_close(torch.autograd.grad(out, x, up), want, rtol=0, atol=0)


PAIRS = {
    "labels": lambda: torch.randint(0, 5, (6,)),
    "ignored labels": lambda: torch.tensor([0, -100, 4, -100, 2, 3]),
    "maps": lambda: torch.randint(0, 5, (6, 3)),
    "probabilities": lambda: torch.rand(6, 5),
    "half maps": lambda: torch.rand(6, 5, 3).half(),
    "double": lambda: torch.rand(6, 5).double(),
}


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_target_b_is_the_partners_target(backend, kind, dtype):
    """target_b=target[perm] is perm=perm, bit for bit; another target_b too."""
    perm, options = torch.randperm(6), {"num_classes": 5, "label_smoothing": 0.1, "dtype": dtype}
    target = PAIRS[kind]()
    for lam in (torch.rand(6), torch.tensor(0.3), torch.tensor([0.0, 1.0] * 3), 0.25):
        want = m.mix_targets(target, perm, lam, **options)
        got = m.mix_targets(target, None, lam, target_b=target[perm], **options)
        assert torch.equal(got, want)
    other, lam = PAIRS[kind](), torch.rand(6)
    both = torch.cat([target, other])
    flip = torch.arange(12).roll(6)
    want = m.mix_targets(both, flip, torch.cat([lam, lam]), **options)[:6]
    assert torch.equal(m.mix_targets(target, None, lam, target_b=other, **options), want)


def test_target_b_of_another_dtype(backend):
    """Labels of any integer dtype; of two floating dtypes the wider counts."""
    y = torch.tensor([0, 1, 2])
    want = m.mix_targets(y, None, 0.3, target_b=y.flip(0), num_classes=3)
    got = m.mix_targets(y, None, 0.3, target_b=y.flip(0).to(torch.uint8), num_classes=3)
    assert torch.equal(got, want)
    assert torch.equal(m.mix_targets(y, None, 0.3, target_b=y, num_classes=3), torch.eye(3))
    t, wide = torch.rand(3, 4).half(), torch.rand(3, 4).double()
    want = m.mix_targets(t.double(), None, 0.3, target_b=wide)
    assert torch.equal(m.mix_targets(t, None, 0.3, target_b=wide), want)


def test_gradients_of_target_b():
    t, b = (torch.rand(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    lam = torch.rand(3, dtype=torch.float64, requires_grad=True)
    f = lambda t, b, lam: m.mix_targets(  # noqa: E731
        t, None, lam, target_b=b, label_smoothing=0.1, dtype=torch.float64
    )
    assert torch.autograd.gradcheck(f, (t, b, lam))
    assert torch.autograd.gradgradcheck(f, (t, b, lam))
    with (
        m.use_backend("cpp"),
        pytest.raises(RuntimeError, match="it has no gradient for target_b"),
    ):
        m.mix_targets(t.detach(), None, 0.3, target_b=b)


@pytest.mark.on_cpu
@pytest.mark.parametrize(
    "change, kind, message",
    [
        ({"perm": None}, ValueError, "exactly one of perm and target_b must be given, got neither"),
        ({"target_b": torch.zeros(3).long()}, ValueError, "exactly one of perm and.*got both"),
        (
            {"perm": None, "target_b": torch.zeros(2).long()},
            ValueError,
            r"target_b must have target's shape \(3,\), got int64 of shape \(2,\)",
        ),
        (
            {"perm": None, "target_b": torch.rand(3, 2)},
            TypeError,
            r"target_b must be of target's kind, int64 of shape \(3,\), got float32",
        ),
        ({"perm": None, "target_b": [1]}, TypeError, "target_b must be integer labels or floating"),
        (
            {"perm": None, "target_b": torch.zeros(3, device="meta").long()},
            ValueError,
            "target_b must be on cpu, got meta",
        ),
        (
            {"perm": None, "target_b": torch.tensor([0, 1, 2])},
            IndexError,
            r"target_b must hold labels in \[0, 1\] or ignore_index=-100, got 2",
        ),
        (
            {"perm": None, "target_b": torch.tensor([0, 1, 1]), "target": torch.tensor([0, 1, 2])},
            IndexError,
            r"target must hold labels in \[0, 1\] or ignore_index=-100, got 2",
        ),
    ],
)
def test_errors_of_target_b(backend, change, kind, message):
    call = {
        "target": torch.tensor([0, 1, 1]),
        "perm": torch.tensor([1, 2, 0]),
        "lam": 0.3,
        "num_classes": 2,
    }
    with pytest.raises(kind, match=message):
        m.mix_targets(**{**call, **change})


def test_target_b_compiles(backend):
    torch._dynamo.reset()
    y, y_b = torch.tensor([0, 1, 2]), torch.tensor([2, 2, 0])
    call = lambda y, y_b, lam: m.mix_targets(y, None, lam, target_b=y_b, num_classes=3)  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    lam = torch.tensor(0.3)
    assert torch.equal(compiled(y, y_b, lam), call(y, y_b, lam))
