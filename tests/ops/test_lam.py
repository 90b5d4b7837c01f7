"""λ as an argument: large numbers, NumPy numbers, shapes, gradients."""

import pytest
import torch

import mmix_fast as m
from mmix_fast.arithmetic import as_lam
from tests.ops.arguments import IMAGES, PERM, X, Y, same

np = pytest.importorskip("numpy")


# λ is rounded to float32, also where that gives inf.
@pytest.mark.parametrize("lam", [1e300, -1e300, 3, np.int64(-2), np.float64("inf")])
def test_any_number_is_a_lam(backend, lam):
    rounded = torch.tensor(float(lam), dtype=torch.float64).float()
    torch.testing.assert_close(m.mix(X, PERM, lam), m.mix(X, PERM, rounded), equal_nan=True)


LAM_OPS = {
    "mix": lambda lam: m.mix(X, PERM, lam),
    "mix dim=1": lambda lam: m.mix(X.t(), PERM, lam, dim=1),
    "mix_": lambda lam: m.mix_(X.clone(), PERM, lam),
    "cutmix_": lambda lam: m.cutmix_(IMAGES.clone(), PERM, (0, 2, 1, 4), lam=lam),
    "mix_targets": lambda lam: m.mix_targets(Y, PERM, lam, num_classes=3),
    "mix_batch_": lambda lam: m.mix_batch_(X.clone(), Y, PERM, lam, num_classes=3),
    "loss": lambda lam: m.mixed_cross_entropy(X, Y, PERM, lam),
    "loss none": lambda lam: m.mixed_cross_entropy(X, Y, PERM, lam, reduction="none"),
    "loss target_b": lambda lam: m.mixed_cross_entropy(
        X, Y, None, lam, target_b=Y.flip(0), weight=torch.tensor([1.0, 2.0, 0.5])
    ),
    "accuracy": lambda lam: m.Mix(PERM, lam).accuracy(X, Y),
}


@pytest.mark.parametrize("op", LAM_OPS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_lam_may_have_trailing_dimensions_of_1(backend, op, dtype):
    call = LAM_OPS[op]
    one, each = torch.tensor(0.3, dtype=dtype), torch.tensor([0.0, 0.3, 1.0, 0.7], dtype=dtype)
    for shape in ((1,), (1, 1), (1, 1, 1, 1)):
        same(call(one.reshape(shape)), call(one))
    for shape in ((4, 1), (4, 1, 1, 1)):
        same(call(each.reshape(shape)), call(each))
    for shape in ((1, 4), (2,), (4, 2), (2, 2)):
        with pytest.raises(ValueError, match=r"lam must have shape \(\) or \(4,\), either with"):
            call(torch.rand(shape))


def test_one_element_at_batch_one_is_lam_of_its_sample(backend):
    """At batch size 1 (a last batch), λ of one element is per-sample, as a (B,) tensor is."""
    x, perm, y, z = torch.rand(1, 2, 2, 2), torch.tensor([0]), torch.tensor([0]), torch.rand(1, 3)
    for shape in ((1,), (1, 1), (1, 1, 1, 1)):
        lam = torch.full(shape, 0.25)
        assert m.cutmix_(x.clone(), perm, (0, 1, 0, 1), lam=lam)[1].shape == (1,)
        options = {"target_b": y + 1, "weight": torch.tensor([1.0, 3.0, 1.0])}
        got = m.mixed_cross_entropy(z, y, None, lam, **options)
        same(got, m.mixed_cross_entropy(z, y, None, torch.tensor([0.25]), **options))
        same(m.mix(x, perm, lam), m.mix(x, perm, 0.25))
    assert m.cutmix_(x.clone(), perm, (0, 1, 0, 1), lam=torch.tensor(0.25))[1].shape == ()


def test_an_empty_batch_takes_every_lam(backend):
    x, perm = torch.rand(0, 3), torch.arange(0)
    for shape in ((), (1,), (1, 1), (0,), (0, 1), (0, 1, 1)):
        assert m.mix(x, perm, torch.rand(shape)).shape == (0, 3)
    with pytest.raises(ValueError, match="lam must have shape"):
        m.mix(x, perm, torch.rand(0, 5))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (4, 1), (4, 1, 1, 1)])
def test_gradient_to_lam_has_its_shape(backend, compiled, shape):
    lam = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    x, up = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    mix = m.mix
    if compiled:
        torch._dynamo.reset()
        mix = torch.compile(m.mix, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(mix(x, PERM, lam), (x, lam), up)
    row = lam.float().reshape(() if lam.numel() == 1 else (4, 1))
    want = torch.autograd.grad(row * x + (1 - row) * x[PERM], (x, lam), up)
    assert got[1].shape == shape and got[1].dtype == torch.float64
    torch.testing.assert_close(got, want)


def test_a_lam_that_requires_grad_where_there_is_no_gradient(backend):
    """lam is reshaped by a view, which still requires grad."""
    lam = torch.rand(4, 1, requires_grad=True)
    with pytest.raises(RuntimeError, match="lam must not require grad where x is mixed in place"):
        m.mix_(X.clone(), PERM, lam)
    if backend == "reference":
        m.mix_targets(Y, PERM, lam, num_classes=3).square().sum().backward()
        assert lam.grad.shape == (4, 1) and lam.grad.any()
    else:
        with pytest.raises(RuntimeError, match="no gradient for lam"):
            m.mix_targets(Y, PERM, lam, num_classes=3)


def test_compiled_numpy_lam():
    torch._dynamo.reset()
    step = torch.compile(lambda lam: m.mix(X, PERM, lam), fullgraph=True, backend="aot_eager")
    for lam in (np.float32(0.3), np.float64(0.3), np.array(0.3), np.int64(1)):
        same(step(lam), m.mix(X, PERM, float(lam)))
    with pytest.raises(Exception, match="lam must be"):
        step(np.array(True))


@pytest.mark.parametrize(
    "lam", [0.3, 1e300, torch.tensor(0.3), torch.tensor(0.3).double()], ids=str
)
def test_lam_reaches_another_device_by_a_fill(monkeypatch, lam):
    """A copy from the host's pageable memory could not be captured in a CUDA graph."""
    device = torch.device("meta")  # stands for a GPU
    monkeypatch.setattr(torch, "scalar_tensor", None)
    copied = []
    to = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda t, *args, **kw: copied.append(t.device) or to(t, *args, **kw)
    )
    made = as_lam(lam, torch.float32, device)
    assert made.device == device and made.dtype == torch.float32 and made.shape == ()
    assert torch.device("cpu") not in copied


def test_a_lam_that_is_followed_is_copied_to_another_device():
    device = torch.device("meta")
    leaf = torch.tensor(0.3, requires_grad=True)
    assert as_lam(leaf, torch.float32, device).requires_grad
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.tensor(0.3), torch.tensor(1.0))
        made = as_lam(dual, torch.float32, device)
        assert torch.autograd.forward_ad.unpack_dual(made).tangent is not None
    seen = []

    def loss(lam):
        seen.append(as_lam(lam, torch.float32, device))
        return lam * 1

    torch.func.grad(loss)(torch.tensor(0.3))
    assert seen[0].device == device
