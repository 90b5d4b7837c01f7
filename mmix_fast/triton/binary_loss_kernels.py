"""The Triton kernel of the mixed binary cross-entropy: loss and gradient, element by element.

Logits are addressed as in loss_kernels.py. With a = 1-t and b = pos_weight*t, an element has
    loss = weight * (k*abs(z) + (a+b)*log1p(e)),   gradient = weight * sign(z)*(k - (a+b)*s)
where e = exp(-abs(z)), s = e/(1+e) = sigmoid(-abs(z)), and k is a if z >= 0, else b. This is
a*softplus(z) + b*softplus(-z) and its derivative. Small losses and gradients keep their digits.
A bad label or a bad index makes t NaN in its row, also where the class weight is 0.
"""

import triton
import triton.language as tl

from .arguments import Labels
from .binary_loss_targets import label_targets, of_floats, of_labels, poisoned
from .kernels import acc_of, aligned, number, rounded
from .loss_rows import cells, lam_of, row_at, tile_rows
from .loss_targets import sides_of


@triton.jit
def log1p(e):
    """log(1 + e) for e in [0, 1], with a small relative error where e is small."""
    if e.dtype == tl.float32:
        # e times a polynomial, of least relative error on [0, 1]: 4e-7 with its roundings.
        p = tl.fma(e, -0.00853920061, 0.0440896034)
        p = tl.fma(e, p, -0.107681672)
        p = tl.fma(e, p, 0.177452385)
        p = tl.fma(e, p, -0.244954617)
        p = tl.fma(e, p, 0.332754795)
        p = tl.fma(e, p, -0.499974054)
        result = e * tl.fma(e, p, 0.999999806)
    else:
        # 1 + e is rounded; the logarithm of what it became is scaled back.
        u = 1 + e
        d = u - 1
        result = tl.where(d == 0, e, tl.log(u) * (e / tl.where(d == 0, 1, d)))
    return result


@triton.jit
def terms(z, a, b, total):
    """(loss, gradient) of the logits z; total: a + b."""
    size = tl.abs(z)
    e = tl.exp(-size)
    k = tl.where(z >= 0, a, b)
    slope = k - total * (e / (1 + e))
    # k may be 0 where abs(z) is inf.
    loss = tl.where(k == 0, 0, k * size) + total * log1p(e)
    return loss, tl.where(z >= 0, slope, -slope)


@triton.jit
def weigh(c, loss, slope, weight_ptr, good, classes):
    """Loss and gradient times the class weights. A class of weight 0 is absent, whatever it holds;
    only a row that is not good stays NaN."""
    w = tl.load(weight_ptr + c, mask=c < classes, other=0).to(loss.dtype)[None, :]
    absent = (w == 0) & good[:, None]
    return tl.where(absent, 0, w * loss), tl.where(absent, 0, w * slope)


@triton.jit
def binary_loss_kernel(
    logits, out, target, partner, loss, grad, pairs, classes, inner, row_tiles, spans, span,
    weight_ptr, pos_weight_ptr, keep: tl.float64, hot: tl.float64, base: tl.float64,
    threshold: tl.float64, scale: tl.float64, OPT, TILE,
):  # fmt: skip
    """A tile of rows and ``span`` of their classes, BLOCK_CLASSES at a time. FORWARD writes the
    loss: of each element (EVERY), or the sum of all, times scale. GRADIENT writes out.

    out may be the logits in a backward: the thread that stores an element has loaded it before.
    RESCALE: out holds the gradient for upstream 1; elements with this upstream are not written.
    """
    acc: tl.constexpr = acc_of(logits.ptr.dtype.element_ty)
    if not OPT.BESIDE:
        classes = aligned(classes, TILE.ALONG)
    pid = tl.program_id(0)
    rows = tile_rows(pid // spans, inner, pairs.batch, row_tiles, OPT, TILE)
    keep, hot, base = number(keep, acc), number(hot, acc), number(base, acc)
    threshold, factor = number(threshold, acc), number(scale, acc)
    if not OPT.FORWARD and not OPT.EVERY:
        upstream = tl.load(grad.ptr).to(acc)
        if OPT.RESCALE and upstream == 1:
            return
        factor *= upstream

    # The targets of each row.
    if OPT.LABELS:
        labels = Labels(target.ptr, partner.ptr, None, classes, rows.inner, None)
        row, good = label_targets(rows, labels, pairs, hot, base, threshold, acc, OPT, TILE)
    else:
        sides, good = sides_of(rows, target, partner, pairs, OPT, TILE)
        row_lam = lam_of(rows, pairs, acc, OPT, TILE)
        lam, rest = poisoned(row_lam, good)

    z_at, z_col = row_at(logits, rows.outer, rows.index, TILE.VEC, OPT)
    if OPT.GRADIENT:
        out_at, out_col = row_at(out, rows.outer, rows.index, TILE.VEC, OPT)
    if OPT.EVERY and OPT.FORWARD:
        loss_at, loss_col = row_at(loss, rows.outer, rows.index, TILE.LOSS_VEC, OPT)
    if OPT.EVERY and not OPT.FORWARD:
        grad_at, grad_col = row_at(grad, rows.outer, rows.index, TILE.GRAD_VEC, OPT)

    losses = tl.zeros((TILE.BLOCK_ROWS, TILE.BLOCK_CLASSES), acc)
    first = pid % spans * span
    for c0 in range(first, tl.minimum(first + span, classes), TILE.BLOCK_CLASSES):
        c = c0 + tl.arange(0, TILE.BLOCK_CLASSES)
        in_class = (c < classes)[None, :]
        mask = rows.here[:, None] & in_class
        z = tl.load(cells(z_at, c, z_col), mask=mask, other=0).to(acc)
        if OPT.LABELS:
            t = of_labels(c, row)
        else:
            t = of_floats(c, mask, sides, row_lam, lam, rest, keep, base, threshold, OPT, TILE)
        if pos_weight_ptr is None:
            # 1, but NaN where a float target is infinite.
            value, slope = terms(z, 1 - t, t, 1 if OPT.LABELS else 1 - t + t)
        else:
            pos_weight = tl.load(pos_weight_ptr + c, mask=c < classes, other=0).to(acc)[None, :]
            a, b = 1 - t, pos_weight * t
            value, slope = terms(z, a, b, a + b)
            absent = (a == 0) & (b == 0)
            value, slope = tl.where(absent, 0, value), tl.where(absent, 0, slope)
        if weight_ptr is not None:
            value, slope = weigh(c, value, slope, weight_ptr, good, classes)
        if OPT.FORWARD and OPT.EVERY:
            tl.store(cells(loss_at, c, loss_col), value, mask=mask)
        if OPT.FORWARD and not OPT.EVERY:
            losses += tl.where(in_class, value, 0)
        if OPT.GRADIENT:
            slope *= factor
            if OPT.EVERY and not OPT.FORWARD:
                upstream = tl.load(cells(grad_at, c, grad_col), mask=mask, other=1).to(acc)
                slope *= upstream
                if OPT.RESCALE:
                    mask = mask & (upstream != 1)
            slope = rounded(slope, out.ptr.dtype.element_ty)
            tl.store(cells(out_at, c, out_col), slope, mask=mask)
    if OPT.FORWARD and not OPT.EVERY:
        of_rows = tl.where(rows.here, tl.sum(losses, 1), 0)
        tl.store(loss.ptr + pid, factor * tl.sum(of_rows, 0))
