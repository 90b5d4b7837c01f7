"""cutmix_: bits in every layout, λ corrected by area, gradients, errors, torch.compile."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmix_fast as m
from tests.support.cases import DTYPES, PERMS, expected_mix
from tests.support.properties import property_test

RUNS_ON_GPU = True
LAYOUTS = {
    "contiguous": lambda: torch.randn(6, 3, 7, 9),
    "channels_last": lambda: torch.randn(6, 3, 7, 9).contiguous(memory_format=torch.channels_last),
    "channels_last_video": lambda: torch.randn(4, 3, 2, 5, 6).contiguous(
        memory_format=torch.channels_last_3d
    ),
    "gray": lambda: torch.randn(5, 8, 4),
    "sliced": lambda: torch.randn(8, 3, 9, 14)[::2, 1:, ::3, ::2],
    "transposed": lambda: torch.randn(6, 3, 7, 9).transpose(2, 3),
    "one": lambda: torch.randn(1, 1, 4, 4),
    "empty": lambda: torch.randn(0, 3, 4, 4),
}


def by_hand(x, perm, boxes, lams):
    mixed, out = [expected_mix(x, perm, lam) for lam in lams], x.clone()
    for i, (top, bottom, left, right) in enumerate(boxes):
        out[i, ..., top:bottom, left:right] = mixed[i][i, ..., top:bottom, left:right]
    return out


def random_box(height, width):
    top, bottom = sorted(torch.randint(0, height + 1, (2,)).tolist())
    left, right = sorted(torch.randint(0, width + 1, (2,)).tolist())
    return top, bottom, left, right


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("own_box", [False, True])
@pytest.mark.parametrize("lam", ["paste", 0.3, "per_sample"])
def test_bits_in_every_layout(backend, layout, dtype, own_box, lam):
    for make_perm in PERMS.values():
        like = LAYOUTS[layout]()
        x = torch.empty_strided(like.shape, like.stride(), dtype=dtype).copy_(like)
        batch, (height, width) = x.shape[0], x.shape[-2:]
        perm = make_perm(batch)
        boxes = [random_box(height, width) for _ in range(batch if own_box else 1)]
        box = torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4) if own_box else boxes[0]
        boxes = boxes if own_box else boxes * batch
        inside = torch.rand(batch) if lam == "per_sample" else torch.tensor(0.3)
        weights = [inside if inside.ndim == 0 else v for v in inside.expand(batch)]
        if lam == "paste":
            inside, weights = 0.0, [torch.tensor(0.0)] * batch
        want, version = by_hand(x, perm, boxes, weights), x._version
        out, corrected = m.cutmix_(x, perm, box, lam=inside)
        assert out is x and x._version == version + 1
        assert torch.equal(x, want)
        area = torch.tensor([(b - t) * (r - c) for t, b, c, r in boxes]) / (height * width)
        expected = 1 - (1 - torch.as_tensor(inside).double()) * area.double()
        per_sample = own_box or lam == "per_sample"
        assert corrected.shape == ((batch,) if per_sample else ())
        assert corrected.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(corrected.double().expand(batch), expected, rtol=0, atol=1e-6)


@settings(property_test, max_examples=60)
@given(st.data())
def test_random_boxes(data):
    batch, channels, height, width = (data.draw(st.integers(1, 6)) for _ in range(4))
    x = torch.randn(batch, channels, height, width)
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    perm = torch.tensor(data.draw(st.permutations(range(batch))))
    edges = st.lists(st.integers(0, height), min_size=2, max_size=2).map(sorted)
    sides = st.lists(st.integers(0, width), min_size=2, max_size=2).map(sorted)
    boxes = [data.draw(edges) + data.draw(sides) for _ in range(batch)]
    want = by_hand(x, perm, boxes, [torch.tensor(0.0)] * batch)
    m.cutmix_(x, perm, torch.tensor(boxes))
    assert torch.equal(x, want)


def test_a_lam_of_0_beside_others(backend):
    """Its rows get the partner's bits, also -0.0 and inf, and none of their own NaN."""
    x = torch.randn(4, 2, 3, 3)
    x[1, 0, 0, 0], x[1, 0, 0, 1], x[0] = -0.0, float("inf"), float("nan")
    perm, lam, want = torch.tensor([1, 0, 3, 2]), torch.tensor([0.0, 0.3, 1.0, 0.0]), x.clone()
    want[0, ..., :2, :2], want[3, ..., :2, :2] = x[1, ..., :2, :2], x[2, ..., :2, :2]
    m.cutmix_(x, perm, (0, 2, 0, 2), lam=lam)
    for row in (0, 2, 3):
        assert torch.equal(x[row].view(torch.int32), want[row].view(torch.int32))


def test_nan_with_coefficient_0_does_not_leak(backend):
    x = torch.full((2, 1, 2, 2), float("nan"))
    x[1] = 1.0
    m.cutmix_(x, torch.tensor([1, 0]), (0, 1, 0, 2))
    assert torch.equal(x[0, 0, 0], torch.ones(2)) and x[0, 0, 1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_gradient_of_a_paste(dtype):
    perm = torch.tensor([1, 2, 0])
    boxes = torch.tensor([[0, 2, 1, 3], [0, 0, 0, 0], [1, 3, 0, 2]])
    x = torch.randn(3, 2, 3, 3, dtype=dtype, requires_grad=True)
    up = torch.randn(3, 2, 3, 3, dtype=dtype)
    for box in ((0, 2, 1, 3), boxes):
        got = torch.autograd.grad(m.cutmix_(x * 1, perm, box)[0], x, up)[0]
        pasted, rows = (x * 1), torch.as_tensor(box).expand(3, 4).tolist()
        parts = []
        for i, (t, b, l, r) in enumerate(rows):  # noqa: E741
            inside = torch.zeros(3, 3, dtype=torch.bool)
            inside[t:b, l:r] = True
            parts.append(torch.where(inside, pasted[perm[i]], pasted[i]))
        assert torch.equal(got, torch.autograd.grad(torch.stack(parts), x, up)[0])


def test_gradient_is_right_or_raises(backend):
    perm, box = torch.tensor([1, 2, 0]), torch.tensor([[0, 2, 1, 3], [0, 0, 0, 0], [1, 3, 0, 2]])
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    if backend != "reference":
        with pytest.raises(RuntimeError, match="it has no gradient for x"):
            m.cutmix_(x * 1, perm, box)
        with pytest.raises(RuntimeError, match="it has no gradient for x"):
            m.cutmix_(x.to(torch.complex64), perm, box)
        return
    for lam in (0.3, 0.0, 1.0, torch.tensor([0.0, 0.3, 1.0])):
        assert torch.autograd.gradcheck(
            lambda t, lam=lam: m.cutmix_(t * 1, perm, box, lam=lam)[0], x
        )
    z = torch.randn(3, 2, 3, 3, dtype=torch.complex128).to(torch.complex64).requires_grad_()
    m.cutmix_(z * 1, perm, (0, 2, 1, 3))[0][0].real.sum().backward()
    assert torch.equal(z.grad[1, :, :2, 1:].real, torch.ones(2, 2, 2))


def test_gradient_without_a_forced_backend():
    x = torch.randn(3, 2, 3, 3, requires_grad=True)
    m.cutmix_(x * 1, torch.tensor([1, 2, 0]), (0, 3, 0, 3))[0][0].sum().backward()
    assert torch.equal(x.grad[1], torch.ones(2, 3, 3)) and not x.grad[0].any()


X, PERM = torch.randn(3, 2, 4, 5), torch.tensor([1, 2, 0])


@pytest.mark.on_cpu
@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: m.cutmix_([1], PERM, (0, 1, 0, 1)), TypeError, "x must be a Tensor"),
        (lambda: m.cutmix_(X[0, 0], PERM, (0, 1, 0, 1)), ValueError, "x must have shape"),
        (lambda: m.cutmix_(X, PERM[:2], (0, 1, 0, 1)), ValueError, "perm must be int64 of shape"),
        (lambda: m.cutmix_(X, PERM * 0, (0, 1, 0, 1)), ValueError, "perm must be a permutation"),
        (lambda: m.cutmix_(X, PERM, (0, 1, 0, 1), lam="a"), TypeError, "lam must be a float"),
        (lambda: m.cutmix_(X, PERM, 3), TypeError, r"box must be 4 ints, or int64 of shape \(4,\)"),
        (lambda: m.cutmix_(X, PERM, (0, 1, 0)), ValueError, "box must be 4 ints"),
        (
            lambda: m.cutmix_(X, PERM, (0, 1, 0, 1.5)),
            TypeError,
            "each edge of box must be an int, got",
        ),
        (lambda: m.cutmix_(X, PERM, (0, 1, 0, True)), TypeError, "each edge of box must be an int"),
        (lambda: m.cutmix_(X, PERM, "0101"), TypeError, "box must be 4 ints.*got str '0101'"),
        (lambda: m.cutmix_(X, PERM, torch.zeros(4)), TypeError, "got float32 of shape"),
        (lambda: m.cutmix_(X, PERM, PERM), ValueError, r"\(3, 4\), got int64 of shape \(3,\)"),
        (
            lambda: m.cutmix_(X, PERM, (0, 5, 0, 1)),
            ValueError,
            r"bottom <= 4 and 0 <= left <= right <= 5, got \(0, 5, 0, 1\)",
        ),
        (lambda: m.cutmix_(X, PERM, (2, 1, 0, 1)), ValueError, r"got \(2, 1, 0, 1\)"),
        (lambda: m.cutmix_(X, PERM, (0, 1, -1, 1)), ValueError, r"got \(0, 1, -1, 1\)"),
        (
            lambda: m.cutmix_(X[:1].expand(3, 2, 4, 5), PERM, (0, 1, 0, 1)),
            RuntimeError,
            "x must not overlap itself",
        ),
        (
            lambda: m.cutmix_(X.clone().requires_grad_(), PERM, (0, 1, 0, 1)),
            RuntimeError,
            "x must not be a leaf",
        ),
    ],
)
def test_errors_and_that_nothing_is_written(backend, call, kind, message):
    before = X.clone()
    with pytest.raises(kind, match=message):
        call()
    assert torch.equal(X, before)


@pytest.mark.on_cpu
def test_compiled(backend):
    torch._dynamo.reset()
    step = torch.compile(lambda x, box: m.cutmix_(x * 1, PERM, box), fullgraph=True)
    for box in (torch.tensor([0, 2, 1, 4]), torch.tensor([1, 3, 0, 5])):
        out, lam = step(X, box)
        want, want_lam = m.cutmix_(X.clone(), PERM, box)
        assert torch.equal(out, want) and torch.equal(lam, want_lam)
    given = torch.compile(lambda x: m.cutmix_(x, PERM, (0, 2, 1, 4))[0], fullgraph=True)
    x = X.clone()
    given(x)
    assert torch.equal(x, m.cutmix_(X.clone(), PERM, (0, 2, 1, 4))[0])


@pytest.mark.on_cpu
def test_a_row_of_numpy_ints_is_a_box(backend):
    np = pytest.importorskip("numpy")
    want, want_lam = m.cutmix_(X.clone(), PERM, (0, 4, 2, 5))
    edges = np.clip(np.array([-3, 9, 2, 5]), 0, [4, 4, 5, 5])
    for box in (edges, tuple(edges), list(edges.astype(np.uint8)), edges.astype(np.int32)):
        out, lam = m.cutmix_(X.clone(), PERM, box)
        assert torch.equal(out, want) and torch.equal(lam, want_lam)
    for box in (edges.astype(float), np.tile(edges, (3, 1))):
        with pytest.raises(TypeError, match="box must be"):
            m.cutmix_(X.clone(), PERM, box)


def test_opcheck():
    box = torch.tensor([[0, 2, 1, 4]] * 3)
    args = (X.clone(), PERM, box, torch.tensor(0.3))
    torch.library.opcheck(torch.ops.mmix_fast.cutmix_.default, args)
    torch.library.opcheck(torch.ops.mmix_fast.cutmix_.default, ((X > 0).byte(), *args[1:]))
