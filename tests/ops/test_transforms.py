"""torch.func, forward-mode AD, vmap over the backward: right, or an error that says why."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import mmix_fast as m
from tests.support import traced_ops
from tests.support.traced_ops import EVERY, IN_PLACE, LOSSES, MIXES, PLAIN, B, C

D64 = torch.float64
REFUSED = "it has no rules for torch.func and forward-mode AD"


def plain(name):
    """The op by its definition, in plain PyTorch."""

    def mixed(z, perm, lam, other=None):
        lam = lam.reshape(-1, 1) if lam.ndim else lam
        other = z if other is None else other
        return lam * z + (1 - lam) * (other if perm is None else other.index_select(0, perm))

    def cross_entropy(z, d):
        logp = z.log_softmax(1)
        if "pairs" in name:
            a, b = (-logp.gather(1, d[k].unsqueeze(1)).squeeze(1) for k in ("y", "y_b"))
            rows = d["lams"] * a + (1 - d["lams"]) * b
        else:
            onehot = (d["y"].unsqueeze(1) == torch.arange(C)).to(z.dtype)
            q = mixed(d["t"] if "probabilities" in name else onehot, d["perm"], d["lam"])
            rows = -(q * logp).sum(1)
        return rows if "none" in name else rows.sum() if "sum" in name else rows.mean()

    def binary_cross_entropy(z, d):
        if "labels" in name:
            hot = torch.arange(C)
            own, other = ((d[k].unsqueeze(1) == hot).to(z.dtype) for k in ("y", "y_b"))
            own, other = (0.9 * q + 0.1 / C for q in (own, other))
            lam = d["lams"].unsqueeze(1)
            t = lam * own + (1 - lam) * other
        else:
            t = mixed((d["t"] > 0.2).to(z.dtype), d["perm"], d["lam"])
        every = -(1 - t) * F.logsigmoid(-z) - t * F.logsigmoid(z)
        return every if "none" in name else every.mean()

    def cut(z, d):
        return torch.cat([mixed(z[:, :3], d["perm"], torch.zeros((), dtype=D64)), z[:, 3:]], 1)

    def call(z, d):
        if "binary" in name:
            return binary_cross_entropy(z, d)
        if "loss" in name:
            return cross_entropy(z, d)
        if name == "cutmix_":
            return cut(z, d).unsqueeze(-1)
        lam = d["lam"] if name in ("mix", "mix_", "mix_batch_, targets") else d["lams"]
        if name == "mix with other":
            return mixed(z, d["index"], lam, z * 2)
        if name == "mix_ with other in pairs":
            return mixed(z, None, lam, z.sin())
        if "targets" in name and "float" not in name:
            own, theirs = ((d[y].unsqueeze(1) == torch.arange(C)).to(z.dtype) for y in ("y", "y_b"))
            pairs = "pairs" in name
            return z * mixed(own, None if pairs else d["perm"], lam, theirs if pairs else None)
        return mixed(z, d["perm"], lam)

    return call


X = traced_ops.x(D64)
TANGENT = torch.randn(B, C, dtype=D64, generator=torch.Generator().manual_seed(2))
BATCH = torch.stack([X, TANGENT, X - TANGENT])


def scalar(f):
    return lambda z: f(z).sin().sum()


TRANSFORMS = {
    "grad": lambda f: grad(scalar(f))(X),
    "vjp": lambda f: vjp(f, X)[1](f(X).detach())[0],
    "jvp": lambda f: jvp(f, (X,), (TANGENT,))[1],
    "jacrev": lambda f: jacrev(f)(X),
    "jacfwd": lambda f: jacfwd(f)(X),
    "hessian": lambda f: hessian(scalar(f))(X),
    "grad of grad": lambda f: grad(lambda z: grad(scalar(f))(z).sin().sum())(X),
    "vmap": lambda f: vmap(f)(BATCH),
    "vmap of grad": lambda f: vmap(grad(scalar(f)))(BATCH),
    "grad of vmap": lambda f: grad(lambda zs: vmap(f)(zs).sin().sum())(BATCH),
    "vmap of jvp": lambda f: vmap(lambda t: jvp(f, (X,), (t,))[1])(BATCH),
    "jvp of grad": lambda f: jvp(grad(scalar(f)), (X,), (TANGENT,))[1],
}


KINDS = (
    "loss, labels, mean",
    "loss, pairs, none",
    "loss, probabilities, sum",
    "binary loss, labels, none",
    "binary loss, multi-hot, mean",
)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", [*MIXES, *KINDS, *PLAIN, "loss in place, mean"])
def test_transforms_are_right_without_a_forced_backend(name, transform):
    d, run = traced_ops.data(D64), TRANSFORMS[transform]
    got = run(lambda z: EVERY[name](z, d))
    torch.testing.assert_close(got, run(lambda z: plain(name)(z, d)))


@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap", "grad of vmap"])
@pytest.mark.parametrize("name", EVERY)
def test_transforms_with_a_forced_backend_are_right_or_raise(backend, name, transform):
    d, run = traced_ops.data(D64), TRANSFORMS[transform]
    want = run(lambda z: plain(name)(z, d))
    if backend == "reference" or name in ("mix", "mix, lam per sample", "mix_"):
        torch.testing.assert_close(run(lambda z: EVERY[name](z, d)), want)
    else:
        with pytest.raises(RuntimeError, match=REFUSED):
            run(lambda z: EVERY[name](z, d))


@pytest.mark.parametrize("name", [*MIXES, *LOSSES, *PLAIN])
def test_forward_mode_with_dual_tensors(name):
    d = traced_ops.data(D64)
    with forward_ad.dual_level():
        z = forward_ad.make_dual(X, TANGENT)
        got, want = (forward_ad.unpack_dual(f(z, d)).tangent for f in (EVERY[name], plain(name)))
        torch.testing.assert_close(got, want)
        lams = {k: forward_ad.make_dual(d[k], torch.ones_like(d[k])) for k in ("lam", "lams")}
        if name != "mix" and name != "cutmix_":  # these two take a fixed λ
            of_lam = (f(X * 1, {**d, **lams}) for f in (EVERY[name], plain(name)))
            got, want = (forward_ad.unpack_dual(t).tangent for t in of_lam)
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("per_sample", [False, True])
def test_mix_with_mapped_arguments(backend, per_sample):
    perms = torch.stack([torch.randperm(B) for _ in range(3)])
    lams = torch.rand(3, B, dtype=D64) if per_sample else torch.rand(3, dtype=D64)
    every = [m.mix(x, p, lam) for x, p, lam in zip(BATCH, perms, lams, strict=True)]
    assert torch.equal(vmap(m.mix)(BATCH, perms, lams), torch.stack(every))
    assert torch.equal(
        vmap(m.mix, (None, 0, None))(X, perms, lams[0]),
        torch.stack([m.mix(X, p, lams[0]) for p in perms]),
    )
    assert torch.equal(
        vmap(m.mix, (1, None, 0), 1)(BATCH.movedim(0, 1), perms[0], lams),
        torch.stack([m.mix(x, perms[0], lam) for x, lam in zip(BATCH, lams, strict=True)], 1),
    )


def test_derivatives_of_mix_along_lam(backend):
    """Also of the gradient to x, as a function of lam."""
    d = traced_ops.data(D64)
    for lam in (d["lam"], d["lams"]):
        ours = lambda z, lam: m.mix(z, d["perm"], lam).sin().sum()  # noqa: E731
        theirs = lambda z, lam: plain("mix")(z, {**d, "lam": lam}).sin().sum()  # noqa: E731
        for run in (
            lambda f, lam=lam: jvp(f, (X, lam), (TANGENT, torch.ones_like(lam)))[1],
            lambda f, lam=lam: grad(f, argnums=1)(X, lam),
            lambda f, lam=lam: jacfwd(jacrev(f, argnums=0), argnums=1)(X, lam),
            lambda f, lam=lam: hessian(f, argnums=(0, 1))(X, lam),
        ):
            torch.testing.assert_close(run(ours), run(theirs))


def test_functionalize(backend):
    d = traced_ops.data()
    for name, call in MIXES.items():
        if backend == "reference" or name in ("mix", "mix, lam per sample", "mix_"):
            got = torch.func.functionalize(lambda z, call=call: call(z, d))(traced_ops.x())
            torch.testing.assert_close(got, call(traced_ops.x(), d))


@pytest.mark.parametrize("op", [m.mix_, lambda x, p, lam: m.cutmix_(x, p, (0, 1, 0, 2), lam=lam)])
def test_the_error_for_writes_that_torch_func_forbids(op):
    x, perms = torch.rand(3, 2, 2), torch.tensor([[0, 1, 2], [1, 2, 0]])
    with pytest.raises(RuntimeError, match=r"cannot write to this x under torch\.func"):
        vmap(lambda p: op(x, p, 0.3))(perms)  # vmap maps perm but not x
    with pytest.raises(RuntimeError, match=r"cannot write to this x under torch\.func"):
        grad(lambda lam: op(x, perms[0], 0.3)[0].sum() * lam)(torch.ones(()))  # x is not lam


def test_labels_are_checked_under_grad_and_give_nan_under_vmap():
    z, perm = torch.randn(4, 3), torch.tensor([1, 2, 3, 0])
    bad = torch.tensor([0, 1, 2, 3])
    for loss in (
        lambda z, y: grad(lambda a: m.mixed_cross_entropy(a, y, perm, 0.3))(z),
        lambda z, y: grad(lambda a, y: m.mixed_cross_entropy(a, y, perm, 0.3))(z, y),
    ):
        with pytest.raises(IndexError, match="target must hold labels"):
            loss(z, bad)
    loss = vmap(lambda y: m.mixed_cross_entropy(z, y, perm, 0.3))(torch.stack([bad, bad % 3]))
    assert loss[0].isnan() and loss[1].isfinite()


VMAPS = {
    "is_grads_batched": lambda out, z, g: torch.autograd.grad(out, z, g, is_grads_batched=True)[0],
    "vmap": lambda out, z, g: vmap(
        lambda one: torch.autograd.grad(out, z, one, retain_graph=True)[0]
    )(g),
    "is_grads_batched, again": lambda out, z, g: torch.autograd.grad(
        torch.autograd.grad(out, z, g, is_grads_batched=True, create_graph=True)[0].sin().sum(), z
    )[0],
}


@pytest.mark.parametrize("over", VMAPS)
@pytest.mark.parametrize("name", [*MIXES, *LOSSES, *IN_PLACE])
def test_vmap_over_the_backward(backend, name, over):
    d, (got, want) = traced_ops.data(D64), (X.clone().requires_grad_() for _ in range(2))
    out, plainly = EVERY[name](got, d), plain(name)(want * 1, d)
    if "again" in over and "targets" in name:
        pytest.skip("it is linear: no second derivative")
    upstream = torch.randn(3, *out.shape, dtype=D64)
    if "again" in over and "loss" not in name:
        out, plainly = out.sin(), plainly.sin()
    torch.testing.assert_close(
        VMAPS[over](out, got, upstream), VMAPS[over](plainly, want, upstream)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_of_the_loss_of_any_order(backend, name):
    d = traced_ops.data(D64)

    def third(call):
        z = X.clone().requires_grad_()
        out = scalar(lambda a: call(a * 1, d))(z)
        for _ in range(3):
            (out,) = torch.autograd.grad(out.sin().sum(), z, create_graph=True)
        return out.detach()

    torch.testing.assert_close(third(EVERY[name]), third(plain(name)))


@pytest.mark.parametrize("what", ["jacobian", "hessian"])
@pytest.mark.parametrize("vectorize", [False, True])
def test_torch_autograd_functional(backend, what, vectorize):
    d, name = traced_ops.data(D64), "loss, labels, mean"
    run = getattr(torch.autograd.functional, what)
    got, want = (
        run(lambda z, f=f: f(z * 1, d), X, vectorize=vectorize) for f in (EVERY[name], plain(name))
    )
    torch.testing.assert_close(got, want)
