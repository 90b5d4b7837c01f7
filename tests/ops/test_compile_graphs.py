"""torch.compile makes at most 2 graphs, for any sequence of batch sizes and numbers."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import mmix_fast as m

SIZES = (8, 5, 6, 7, 9, 12)
C = 5


def batch(size, inner=()):
    torch.manual_seed(size)
    return {
        "z": torch.randn(size, C, *inner, requires_grad=True),
        "y": torch.randint(C, (size, *inner)),
        "y_b": torch.randint(C, (size, *inner)),
        "t": torch.rand(size, C, *inner),
        "perm": torch.randperm(size),
        "lam": torch.tensor(0.3),
        "lams": torch.rand(size),
        "number": size / 20,
        "w": torch.rand(C),
        "boxes": torch.tensor([[0, 2, 0, 1]] * size),
        "edges": (size % 2 + 2, size % 2 + 4, size % 2 + 2, size % 2 + 5),
    }


def images(d):
    return (d["z"] * 1).reshape(-1, 1, C, 1).expand(-1, 1, C, 7).clone()


CALLS = {
    "mix": lambda d: m.mix(d["z"], d["perm"], d["number"]),
    "mix_": lambda d: m.mix_(d["z"] * 1, d["perm"], d["number"]),
    "mix_, strided": lambda d: m.mix_(d["z"].t().contiguous().t() * 1, d["perm"], d["lams"]),
    "mix_, second dim": lambda d: m.mix_((d["z"] * 1).t(), d["perm"], d["lams"], dim=1),
    "mix_targets": lambda d: m.mix_targets(d["y"], d["perm"], d["number"], num_classes=C),
    "mix_targets, float": lambda d: m.mix_targets(d["t"], d["perm"], d["lams"]),
    "mix_batch_": lambda d: m.mix_batch_(d["z"] * 1, d["y"], d["perm"], d["number"], num_classes=C)[
        0
    ],
    "cutmix_, boxes": lambda d: m.cutmix_(images(d), d["perm"], d["boxes"], lam=d["number"])[0],
    "cutmix_, ints": lambda d: m.cutmix_(images(d), d["perm"], d["edges"])[0],
    "sample_mix": lambda d: m.sample_mix(d["z"].shape[0], d["number"]).lam * 0,
    "sample_mix, each": lambda d: (
        m.sample_mix(d["z"].shape[0], d["number"], per_sample=True).mix(d["z"]).sum() * 0
    ),
}
KINDS = {
    "labels": lambda d, **kw: m.mixed_cross_entropy(d["z"], d["y"], d["perm"], d["number"], **kw),
    "pairs": lambda d, **kw: m.mixed_cross_entropy(
        d["z"] * 1, d["y"], None, d["lams"], target_b=d["y_b"], weight=d["w"], **kw
    ),
    "probabilities": lambda d, **kw: m.mixed_cross_entropy(
        d["z"], d["t"], d["perm"], d["lam"], **kw
    ),
}
BINARY_KINDS = {
    "binary labels": lambda d, **kw: m.mixed_binary_cross_entropy(
        d["z"], d["y"], d["perm"], d["number"], weight=d["w"], label_smoothing=0.1, **kw
    ),
    "binary, multi-hot": lambda d, **kw: m.mixed_binary_cross_entropy(
        d["z"] * 1, d["t"] > 0.5, None, d["lams"], target_b=d["t"], **kw
    ),
}
BINARY_OPTIONS = (
    {"reduction": "batchmean"},
    {"reduction": "none"},
    {"target_threshold": 0.4},
    {"inplace_backward": True},
)
OPTIONS = (
    {"reduction": "sum"},
    {"reduction": "none"},
    {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0},
    {"inplace_backward": True},
)


def graphs(call, backend="aot_eager", inner=(), sizes=SIZES, **options):
    """The number of graphs. Values and gradients are compared with eager mode."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(call, fullgraph=True, backend=counter, **options)
    for size in sizes:
        got, want = compiled(batch(size, inner)), call(batch(size, inner))
        torch.testing.assert_close(got, want)
        if want.requires_grad:
            one, other = batch(size, inner), batch(size, inner)
            compiled(one).sin().sum().backward()
            call(other).sin().sum().backward()
            torch.testing.assert_close(one["z"].grad, other["z"].grad)
    return counter.frame_count


@pytest.mark.parametrize("name", CALLS)
def test_graphs_of_every_op_except_the_loss(name):
    assert graphs(CALLS[name]) <= 2


@pytest.mark.parametrize("inner", [(), (2, 3)], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, *BINARY_KINDS])
def test_graphs_of_the_loss(kind, inner):
    call = {**KINDS, **BINARY_KINDS}[kind]
    assert graphs(call, inner=inner) <= 2
    assert graphs(call, inner=inner, dynamic=True) <= 2


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_graphs_of_the_loss_with_options(options):
    for kind in KINDS.values():
        assert graphs(lambda d, kind=kind: kind(d, **options)) <= 2


@pytest.mark.parametrize("options", BINARY_OPTIONS, ids=str)
def test_graphs_of_the_binary_loss_with_options(options):
    for kind in BINARY_KINDS.values():
        assert graphs(lambda d, kind=kind: kind(d, **options)) <= 2


def test_graphs_of_a_step_with_inductor():
    def step(d):
        h = m.mix_(d["z"] * 1, d["perm"], d["number"])
        return sum(kind({**d, "z": h}) for kind in (*KINDS.values(), *BINARY_KINDS.values()))

    assert graphs(step, "inductor", sizes=(8, 5, 6)) <= 2


def test_one_graph_if_the_batch_is_marked_dynamic():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda z, y, perm, lam: m.mixed_cross_entropy(m.mix(z, perm, lam), y, perm, lam),
        fullgraph=True,
        backend=counter,
    )
    for size in SIZES:
        d = batch(size)
        for name in ("z", "y", "perm"):
            torch._dynamo.mark_dynamic(d[name], 0)
        compiled(d["z"], d["y"], d["perm"], d["lam"]).backward()
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["mix", "labels"])
def test_func_transforms_inside_a_compiled_function(name):
    call = {**CALLS, **KINDS}[name]

    def inside(z, d):
        return torch.func.grad(lambda z: call({**d, "z": z}).sin().sum())(z)

    torch._dynamo.reset()
    d = batch(6)
    z = d.pop("z").detach()
    compiled = torch.compile(inside, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z, d), inside(z, d))


@pytest.mark.parametrize("inplace", [False, True])
def test_compiled_autograd(inplace):
    torch._dynamo.reset()
    for up in (1.0, 0.7):
        d, plain = batch(6), batch(6)
        KINDS["labels"](plain).backward(torch.tensor(up))
        loss = KINDS["labels"]({**d, "z": d["z"] * 1}, inplace_backward=inplace)
        with torch._dynamo.compiled_autograd._enable(
            torch.compile(backend="eager", fullgraph=True)
        ):
            loss.backward(torch.tensor(up))
        torch.testing.assert_close(d["z"].grad, plain["z"].grad)
