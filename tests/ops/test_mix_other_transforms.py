"""A second batch under torch.func, forward mode, vmap over the backward and torch.compile."""

import pytest
import torch

import mmix_fast as m
from mmix_fast.reference.mixing import mix as reference_mix
from tests.support.special_lam import assert_same

RUNS_ON_GPU = True


@pytest.mark.parametrize("perm", [[2, 0, 0], None])
def test_func_transforms_are_right_or_raise(backend, perm):
    perm = None if perm is None else torch.tensor(perm)
    x, other = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    ours = lambda a, b, c: m.mix(a, perm, c, other=b).sin().sum()  # noqa: E731
    place = lambda a, b, c: m.mix_(a * 1, perm, 0.3, other=b).sin().sum() * c / 0.3  # noqa: E731
    plain_place = lambda a, b, c: plainly(a, b, 0.3) * c / 0.3  # noqa: E731
    plainly = lambda a, b, c: (  # noqa: E731
        (c * a + (1 - c) * (b if perm is None else b[perm])).sin().sum()
    )
    lam = torch.tensor(0.3, dtype=torch.float64)
    runs = {
        "grad": lambda f: torch.func.grad(f, argnums=(0, 1, 2))(x, other, lam),
        "jvp": lambda f: torch.func.jvp(f, (x, other, lam), (other, x, lam)),
        "vmap": lambda f: torch.func.vmap(f)(
            torch.stack([x, other]), torch.stack([other, x]), x[0, :2]
        ),
        "hessian": lambda f: torch.func.hessian(f, argnums=(0, 1))(x, other, lam),
    }
    for run in runs.values():
        for f, plain in ((ours, plainly), (place, plain_place)):
            if backend == "reference":
                torch.testing.assert_close(run(f), run(plain))
            else:
                with pytest.raises(RuntimeError, match=r"it has no rules for torch\.func"):
                    run(f)


def test_forward_mode_and_functionalize_without_a_forced_backend():
    x, other, t = (torch.randn(3, 4) for _ in range(3))
    perm = torch.tensor([2, 2, 0])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(other, t)
        out = m.mix(x, perm, 0.3, other=dual)
        tangent = torch.autograd.forward_ad.unpack_dual(out).tangent
    torch.testing.assert_close(tangent, (1 - 0.3) * t[perm])
    for op in (m.mix, m.mix_):
        got = torch.func.functionalize(lambda a, b, op=op: op(a * 1, perm, 0.3, other=b))(x, other)
        assert torch.equal(got, m.mix(x, perm, 0.3, other=other))


def test_vmap_over_the_backward(backend):
    x, other = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    perm, lam = torch.tensor([2, 2, 0]), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    batch = torch.randn(2, 3, 4, dtype=torch.float64)
    out = m.mix(x, perm, lam, other=other)
    inputs = (x, other, lam)
    one = [torch.autograd.grad(out, inputs, g, retain_graph=True) for g in batch]
    want = tuple(torch.stack(t) for t in zip(*one, strict=True))
    got = torch.autograd.grad(out, inputs, batch, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(got, want)
    got = torch.func.vmap(lambda g: torch.autograd.grad(out, inputs, g, retain_graph=True))(batch)
    torch.testing.assert_close(got, want)


COMPILED = {
    "mix": lambda x, other, perm, lam: m.mix(x, perm, lam, other=other),
    "mix_ of a graph's tensor": lambda x, other, perm, lam: m.mix_(x * 2, perm, lam, other=other),
    "mix_ of an input": lambda x, other, perm, lam: m.mix_(x, perm, lam, other=other).sin(),
    "in pairs": lambda x, other, perm, lam: m.mix(x, None, lam, other=other[: len(x)]),
    "float": lambda x, other, perm, lam: m.mix_(x, perm, 0.25, other=other),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(backend, name):
    check_compiled(COMPILED[name], "aot_eager")


def test_compiled_with_inductor():
    check_compiled(COMPILED["mix_ of an input"], "inductor")


def check_compiled(call, compiler):
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend=compiler)
    perm, lam = torch.tensor([5, 0, 5, 2]), torch.tensor(0.3)
    for gradients in (False, True):
        x, other = torch.randn(4, 3), torch.randn(6, 3)
        x.requires_grad_(gradients), other.requires_grad_(gradients)
        given, wanted = x * 1, x * 1
        got, want = compiled(given, other, perm, lam), call(wanted, other, perm, lam)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(given, wanted)
        if gradients:
            g = torch.randn(4, 3)
            torch.testing.assert_close(
                torch.autograd.grad(got, (x, other), g), torch.autograd.grad(want, (x, other), g)
            )


def test_a_bad_index_in_a_compiled_graph_raises_or_gives_nan(backend):
    torch._dynamo.reset()
    compiled = torch.compile(COMPILED["mix"], fullgraph=True, backend="aot_eager")
    perm = torch.tensor([1, 7, 0, -3])
    x, other = torch.randn(4, 3), torch.randn(2, 3)
    try:
        got = compiled(x, other, perm, torch.tensor(0.3))
    except (IndexError, RuntimeError) as error:
        assert "perm must hold indices of other" in str(error)
        return
    want = reference_mix(x, perm, torch.tensor(0.3), other=other)
    assert_same(got, want)
    assert torch.equal(got.isnan().all(1), torch.tensor([False, True, False, True]))
