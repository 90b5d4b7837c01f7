"""Types of arguments that are numbers or labels; torch's default dtype and device do not matter."""

import contextlib
import subprocess
import sys
from fractions import Fraction

import pytest
import torch

import mmix_fast as m
from tests.ops.arguments import IMAGES, PERM, X, Y, same

np = pytest.importorskip("numpy")

INTEGERS = (
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.int8,
    torch.int16,
    torch.int32,
)


# Argument -> (function of its value, a valid int or float).
NUMBERS = {
    "mix lam": (lambda n: m.mix(X, PERM, n), 0.25),
    "mix_ lam": (lambda n: m.mix_(X.clone(), PERM, n), 0.25),
    "mix dim": (lambda n: m.mix(X.t(), PERM, 0.3, dim=n), 1),
    "cutmix_ lam": (lambda n: m.cutmix_(IMAGES.clone(), PERM, (0, 2, 1, 4), lam=n), 0.25),
    "cutmix_ box": (lambda n: m.cutmix_(IMAGES.clone(), PERM, (n, 3, n, 4)), 2),
    "targets lam": (lambda n: m.mix_targets(Y, PERM, n, num_classes=3), 0.25),
    "num_classes": (lambda n: m.mix_targets(Y, PERM, 0.3, num_classes=n), 3),
    "of probabilities": (lambda n: m.mix_targets(X, PERM, 0.3, num_classes=n), 3),
    "ignored target": (lambda n: m.mix_targets(Y, PERM, 0.3, num_classes=3, ignore_index=n), 1),
    "smoothed target": (
        lambda n: m.mix_targets(Y, PERM, 0.3, num_classes=3, label_smoothing=n),
        0.25,
    ),
    "batch lam": (lambda n: m.mix_batch_(X.clone(), Y, PERM, n, num_classes=3), 0.25),
    "batch classes": (lambda n: m.mix_batch_(X.clone(), Y, PERM, 0.3, num_classes=n), 3),
    "loss lam": (lambda n: m.mixed_cross_entropy(X, Y, PERM, n), 0.25),
    "ignore_index": (lambda n: m.mixed_cross_entropy(X, Y, PERM, 0.3, ignore_index=n), 1),
    "label_smoothing": (
        lambda n: m.mixed_cross_entropy(X, Y, PERM, 0.3, label_smoothing=n),
        0.25,
    ),
    "z_loss": (lambda n: m.mixed_cross_entropy(X, Y, PERM, 0.3, z_loss=n), 0.25),
    "softcap": (lambda n: m.mixed_cross_entropy(X, Y, PERM, 0.3, softcap=n), 0.25),
    "binary lam": (lambda n: m.mixed_binary_cross_entropy(X, Y, PERM, n), 0.25),
    "binary smoothing": (
        lambda n: m.mixed_binary_cross_entropy(X, Y, PERM, 0.3, label_smoothing=n),
        0.25,
    ),
    "target_threshold": (
        lambda n: m.mixed_binary_cross_entropy(X, Y, PERM, 0.3, target_threshold=n),
        0.25,
    ),
    "batch_size": (lambda n: tuple(m.sample_mix(n, 1.0)), 4),
    "alpha": (lambda n: tuple(m.sample_mix(4, n)), 0.25),
    "identity": (lambda n: tuple(m.Mix.identity(n)), 4),
    "topk": (lambda n: m.Mix(PERM, torch.tensor(0.3)).accuracy(X, Y, topk=n), 2),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numpy_numbers(backend, name):
    call, number = NUMBERS[name]
    kinds = [np.int64, np.int8, np.uint16, lambda n: np.array(n, dtype=np.int32), torch.tensor]
    if not isinstance(number, int):
        kinds = [np.float16, np.float32, np.float64, np.array, Fraction]
    torch.manual_seed(0)
    want = call(number)
    for kind in kinds:
        torch.manual_seed(0)
        same(call(kind(number)), want)


@pytest.mark.parametrize("name", NUMBERS)
def test_arguments_that_are_not_numbers_raise(name):
    call, number = NUMBERS[name]
    wrong = [
        True,
        np.bool_(True),
        np.array(True),
        "1",
        np.array("1"),
        [number],
        1j,
        np.complex64(1),
    ]
    wrong += [np.array([number]), torch.tensor(True), {}]
    if isinstance(number, int):
        wrong += [float(number), np.float32(number), torch.tensor([number])]
    for value in wrong:
        with pytest.raises(TypeError, match=r"must be (an int|a float)") as error:
            call(value)
        assert "\n" not in str(error.value)


def test_numpy_is_not_imported():
    code = """
import sys
class NoNumPy:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "numpy":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, NoNumPy())
import torch, mmix_fast as m
perm, lam = m.sample_mix(4, 1.0)
m.mix_(torch.rand(4, 3), perm, 0.3)
try:
    m.mix(torch.rand(4, 3), perm, [0.3])
except TypeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "got list [0.3]" in done.stdout, done.stdout + done.stderr


def test_an_empty_batch_of_labels(backend):
    z, y, perm = torch.rand(0, 3), torch.zeros(0, dtype=torch.uint8), torch.arange(0)
    assert m.mixed_cross_entropy(z, y, perm, 0.3).isnan()
    assert m.mixed_cross_entropy(z, y, perm, 0.3, reduction="sum") == 0
    assert m.mix_targets(y, perm, 0.3, num_classes=3).shape == (0, 3)
    assert m.Mix(perm, torch.tensor(0.3)).accuracy(z, y).isnan()


def test_compiled_numpy_numbers_raise_or_break_the_graph():
    """NumPy numbers are tensors in a graph: where a value is needed, an error or a graph break."""

    def step(n, eps):
        return m.mix_targets(Y, PERM, 0.3, num_classes=n, label_smoothing=eps)

    for args, name in (((np.int64(3), 0.1), "num_classes"), ((3, np.float32(0.1)), "smoothing")):
        torch._dynamo.reset()
        with pytest.raises(Exception, match=f"{name} must be Python's (int|float) in a compiled"):
            torch.compile(step, fullgraph=True, backend="aot_eager")(*args)
        torch._dynamo.reset()
        same(torch.compile(step, backend="aot_eager")(*args), step(*args))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_labels_of_any_integer_dtype(backend, dtype):
    last = 255 if dtype == torch.uint8 else 100  # an ignore_index that this dtype can hold
    y = torch.tensor([0, last, 1, 2])
    small, kw = y.to(dtype), {"ignore_index": last}
    z = torch.randn(4, 3, requires_grad=True)
    want = m.mixed_cross_entropy(z, y, PERM, 0.3, **kw)
    got = m.mixed_cross_entropy(z, small, PERM, 0.3, **kw)
    same(got, want)
    same(torch.autograd.grad(got, z)[0], torch.autograd.grad(want, z)[0])
    same(m.mixed_cross_entropy(z, y, None, 0.3, target_b=y.flip(0).to(dtype), **kw),
         m.mixed_cross_entropy(z, small, None, 0.3, target_b=y.flip(0), **kw))  # fmt: skip
    kw["num_classes"] = 3
    same(m.mix_targets(small, PERM, 0.3, **kw), m.mix_targets(y, PERM, 0.3, **kw))
    same(
        m.mix_batch_(X.clone(), small, PERM, 0.3, **kw), m.mix_batch_(X.clone(), y, PERM, 0.3, **kw)
    )
    same(m.mixed_binary_cross_entropy(X, Y.to(dtype), PERM, 0.3),
         m.mixed_binary_cross_entropy(X, Y, PERM, 0.3))  # fmt: skip
    mix = m.Mix(PERM, torch.tensor(0.3))
    same(mix.accuracy(X, Y.to(dtype)), mix.accuracy(X, Y))
    same(mix.targets(small, **kw), mix.targets(y, **kw))
    with pytest.raises(IndexError, match=f"target must hold labels.*got {last}"):
        m.mixed_cross_entropy(X, small, PERM, 0.3)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_labels_of_other_dtypes_raise(dtype):
    y, name = Y.to(dtype), str(dtype).removeprefix("torch.")
    for call in (
        lambda: m.mixed_cross_entropy(X, y, PERM, 0.3),
        lambda: m.mixed_cross_entropy(X, Y, None, 0.3, target_b=y),
        lambda: m.mix_targets(y, PERM, 0.3, num_classes=3),
        lambda: m.mix_batch_(X, y, PERM, 0.3, num_classes=3),
        lambda: m.Mix(PERM, torch.tensor(0.3)).accuracy(X, y),
    ):
        with pytest.raises(TypeError, match=f"target.* must be integer labels or.*got {name}"):
            call()


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def everything(x_dtype):
    """Every op with every kind of λ."""
    torch.manual_seed(0)
    x, images = X.to(x_dtype), IMAGES.to(x_dtype)
    z = x.detach().clone().requires_grad_()
    mix = m.sample_mix(4, 0.7, per_sample=True)
    out = [mix.perm, mix.lam, mix.inverse, mix.accuracy(x, Y), mix.accuracy(x, x, topk=2)]
    out += [*m.cutmix_(images.clone(), PERM, (0, 2, 1, 4)), *m.Mix.identity(4)]
    for lam in (mix.lam, 0.3):
        out += [m.mix(x, PERM, lam), m.mix_targets(x, PERM, lam, label_smoothing=0.1)]
        out += m.mix_batch_(x.clone(), Y, PERM, lam, num_classes=3, label_smoothing=0.1)
        out += m.cutmix_(images.clone(), PERM, torch.tensor([[0, 2, 1, 4]] * 4), lam=lam)
        for target, reduction in ((Y, "mean"), (x.softmax(1), "none")):
            options = {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 5, "reduction": reduction}
            loss = m.mixed_cross_entropy(z, target, PERM, lam, **options)
            out += [loss.detach(), torch.autograd.grad(loss.sum(), z)[0]]
            options = {"label_smoothing": 0.1, "target_threshold": 0.4, "reduction": reduction}
            loss = m.mixed_binary_cross_entropy(z, target, PERM, lam, **options)
            out += [loss.detach(), torch.autograd.grad(loss.sum(), z)[0]]
    return out


@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_default_dtype_changes_nothing(backend, x_dtype):
    want = everything(x_dtype)
    for dtype in (torch.float64, torch.float16):
        with default_dtype(dtype):
            got = everything(x_dtype)
        for g, w in zip(got, want, strict=True):
            assert g.dtype == w.dtype and torch.equal(g, w)


def test_the_default_device_changes_nothing(backend):
    """Only a draw without a device is made on the default device."""
    perm, y, x, images = (t.clone() for t in (PERM, Y, X, IMAGES))
    generator = torch.Generator("cpu")
    with torch.device("meta"):
        same(m.mix(x, perm, 0.3), 0.3 * x + (1 - torch.tensor(0.3, device="cpu")) * x[perm])
        m.mix_(x, perm, 0.3)
        m.mix_batch_(x, y, perm, 0.3, num_classes=3)
        assert m.cutmix_(images, perm, (0, 2, 1, 4))[1].device.type == "cpu"
        assert m.mixed_cross_entropy(x, y, perm, 0.3).device.type == "cpu"
        assert m.mixed_binary_cross_entropy(x, y, perm, 0.3).device.type == "cpu"
        assert m.Mix(perm, 0.3).accuracy(x, y).device.type == "cpu"
        assert m.sample_mix(4, 1.0, generator=generator).lam.device.type == "cpu"
        assert m.sample_mix(4, 1.0, device="cpu").perm.device.type == "cpu"
        assert m.Mix.identity(4, "cpu").lam.device.type == "cpu"
        assert m.Mix.identity(4).lam.is_meta and m.sample_mix(4, 0).lam.is_meta
