"""Helpers of the loss kernels for a row's labels, class weights, divisors, logits and targets."""

import triton
import triton.language as tl

from .kernels import number, partner_of


@triton.jit
def labels_of(
    b, r, live, target_ptr, target_b_ptr, perm_ptr, uses_ptr, B, inner, ALL: tl.constexpr
):
    """(own labels, partners' labels, index is good) of rows r, in samples b."""
    mine = tl.load(target_ptr + r, mask=live, other=0)
    good = live
    if perm_ptr is None:
        theirs = tl.load(target_b_ptr + r, mask=live, other=0)
    else:
        j, good = partner_of(b, live, perm_ptr, uses_ptr, B, ALL)
        theirs = tl.load(target_ptr + j * inner + r % inner, mask=live, other=0)
    return mine, theirs, good


@triton.jit
def label_weight(y, live, weight_ptr, C, acc: tl.constexpr):
    """The class weight of label y; 1 without weights, 0 where y is out of range."""
    inside = live & (y >= 0) & (y < C)
    if weight_ptr is None:
        w = inside.to(acc)
    else:
        w = tl.load(weight_ptr + tl.where(inside, y, 0), mask=inside, other=0).to(acc)
    return w


@triton.jit
def divisor_sums(
    first, rows, target_ptr, target_b_ptr, perm_ptr, lam_ptr, weight_ptr, uses_ptr, B, C, inner,
    lam_stride, ignore_index, acc: tl.constexpr, ALL: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Sums over N rows for the divisors of the mean: the weights of own labels, the weights of
    partners' labels, both times their coefficients, and the coefficients alone (for the z-loss)."""
    r = (first + tl.arange(0, N)).to(tl.int64)
    live = r < rows
    b = r // inner
    mine, theirs, _ = labels_of(
        b, r, live, target_ptr, target_b_ptr, perm_ptr, uses_ptr, B, inner, ALL
    )
    lam = tl.load(lam_ptr + b * lam_stride, mask=live, other=0).to(acc)
    rest = tl.where(live, 1 - lam, 0)
    has_own, has_other = live & (mine != ignore_index), live & (theirs != ignore_index)
    w_own = label_weight(mine, has_own, weight_ptr, C, acc)
    w_other = label_weight(theirs, has_other, weight_ptr, C, acc)
    # A term whose coefficient is 0 is left out.
    joint = tl.where(lam == 0, 0, lam * w_own) + tl.where(rest == 0, 0, rest * w_other)
    count = tl.where(has_own, lam, 0) + tl.where(has_other, rest, 0)
    return tl.sum(w_own, 0), tl.sum(w_other, 0), tl.sum(joint, 0), tl.sum(count, 0)


@triton.jit
def inverse(d):
    return tl.where(d == 0, 0, 1 / d)


@triton.jit
def tanh(u):
    e = tl.exp(-2 * tl.abs(u))
    far = (1 - e) / (1 + e)
    if u.dtype == tl.float32:
        # 1 - e loses digits near 0; below 0.3 the series is accurate to 2e-8 of u.
        v = u * u
        near = 62.0 / 2835.0
        near = near * v - 17.0 / 315.0
        near = near * v + 2.0 / 15.0
        near = near * v - 1.0 / 3.0
        near = tl.abs(u) * (near * v + 1)
        far = tl.where(tl.abs(u) < 0.3, near, far)
    return tl.where(u < 0, -far, tl.where(u == u, far, u))


@triton.jit
def capped(z, softcap):
    """softcap*tanh(z/softcap); a masked class (-inf) stays masked."""
    masked = z == float("-inf")
    return tl.where(masked, z, softcap * tanh(tl.where(masked, 0, z) / softcap))


@triton.jit
def load_logits(
    at, c, here, live, C, z_class, acc: tl.constexpr, BESIDE: tl.constexpr, CAPPED: tl.constexpr,
    softcap,
):  # fmt: skip
    """Logits of the classes c; -inf past the last class, and in rows that are not live."""
    # BESIDE: a vector access covers several rows, so rows that are not live are loaded too.
    rows = here if BESIDE else live
    mask = rows[:, None] & (c < C)[None, :]
    at = at[:, None] + (c.to(tl.int64) * z_class)[None, :]
    z = tl.load(at, mask=mask, other=float("-inf")).to(acc)
    if BESIDE:
        z = tl.where(live[:, None], z, float("-inf"))
    if CAPPED:
        z = capped(z, number(softcap, acc))
    return z


@triton.jit
def label_term(at, y, hot, pivot, z_class, CAPPED: tl.constexpr, softcap):
    """hot*(z[y] - pivot) of each row, 0 where hot is 0. Not while the logits are overwritten."""
    z = tl.load(at + y.to(tl.int64) * z_class, mask=hot != 0, other=0).to(hot.dtype)
    if CAPPED:
        z = capped(z, number(softcap, hot.dtype))
    return tl.where(hot == 0, 0, hot * (z - pivot))


@triton.jit
def through_cap(g, z, softcap):
    """Converts g, the gradient to the capped logits z, to the gradient to the logits themselves.

    A masked class (-inf) was not capped.
    """
    u = z / softcap
    return tl.where(z == float("-inf"), g, g * (1 - u * u))


@triton.jit
def load_side(at, c, t_class, mask, coef):
    """The float targets of the classes c; 0, and not read, where the row's coefficient is 0."""
    at = at[:, None] + (c.to(tl.int64) * t_class)[None, :]
    return tl.load(at, mask=mask & (coef != 0)[:, None], other=0).to(coef.dtype)


@triton.jit
def row_targets(c, mask, row, at, LABELS: tl.constexpr, SMOOTH: tl.constexpr):
    """t[c] of the classes c in each row, 0 where masked."""
    mine, theirs, own_hot, other_hot, lam, rest, base, keep, scale = row
    weight_ptr, C, t_at, tb_at, t_class, tb_class = at
    acc: tl.constexpr = lam.dtype
    w = tl.full((1, 1), 1, acc)
    if weight_ptr is not None and (SMOOTH or not LABELS):
        w = tl.load(weight_ptr + c, mask=c < C, other=0).to(acc)[None, :]
    if LABELS:  # own_hot and other_hot include the class weights of the labels themselves
        t = tl.where(c[None, :] == mine[:, None], own_hot[:, None], 0)
        t += tl.where(c[None, :] == theirs[:, None], other_hot[:, None], 0)
        if SMOOTH:
            t += base[:, None] * w
    else:
        # A side with coefficient 0 is left out, and not read.
        own = load_side(t_at, c, t_class, mask, lam)
        other = load_side(tb_at, c, tb_class, mask, rest)
        mix = lam[:, None] * own + rest[:, None] * other
        t = tl.where(w == 0, 0, w * number(scale, acc) * (keep * mix + base))
    return tl.where(mask, t, 0)
