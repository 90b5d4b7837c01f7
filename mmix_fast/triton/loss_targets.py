"""The target of each row of the loss: labels or floats, mixed, smoothed, weighted and scaled.

Coefficients are what a row has for all classes; row_targets gives t[c] of a block of classes.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .kernels import number, partner_of
from .loss_rows import cells, lam_of, row_at


class Coefficients(NamedTuple):
    """Of each row. t[c] is the probability of class c in the target, times weights and scale."""

    own_label: Any  # -1 if there is none, or if its coefficient is 0
    other_label: Any
    own_hot: Any  # t[own_label] - base*weight
    other_hot: Any
    lam: Any
    rest: Any  # 1 - lam
    keep: Any  # 1 - label_smoothing
    base: Any  # the probability that smoothing gives each class; of labels, times their scale
    scale: Any  # of float targets
    z_coef: Any
    mass: Any  # sum of t over the logits' classes, unless it is summed over them
    live: Any  # the row counts
    bad: Any  # a label or the row's index is out of range: its loss and gradient are NaN
    undefined: Any  # the mean is 0/0


class Sides(NamedTuple):
    """Where the float targets (or multi-hot ones) of each row and of its partner are."""

    own_at: Any
    own_col: Any
    other_at: Any
    other_col: Any


class Targets(NamedTuple):
    """What t[c] depends on beside the coefficients."""

    classes: Any  # of the logits
    weight_ptr: Any  # of the logits' first class
    sides: Any  # None: labels


@triton.jit
def labels_of(number, sample, live, labels, pairs, BLOCK_BATCH: tl.constexpr):
    """(own labels, partners' labels, index is good) of the rows with these numbers."""
    own = tl.load(labels.own_ptr + number, mask=live, other=0)
    good = live
    if pairs.perm_ptr is None:
        other = tl.load(labels.other_ptr + number, mask=live, other=0)
    else:
        partner, good = partner_of(
            sample, live, pairs.perm_ptr, pairs.uses_ptr, pairs.batch, BLOCK_BATCH
        )
        at = labels.own_ptr + partner * labels.inner + number % labels.inner
        other = tl.load(at, mask=live, other=0)
    return own, other, good


@triton.jit
def label_weight(label, live, labels, acc: tl.constexpr):
    """The class weight of each label; 1 without weights, 0 where the label is out of range."""
    inside = live & (label >= 0) & (label < labels.classes)
    if labels.weight_ptr is None:
        weight = inside.to(acc)
    else:
        at = labels.weight_ptr + tl.where(inside, label, 0)
        weight = tl.load(at, mask=inside, other=0).to(acc)
    return weight


@triton.jit
def divisor_sums(
    first, rows, labels, pairs, acc: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
):  # fmt: skip
    """Sums over BLOCK_ROWS rows for the divisors of the mean: the weights of own labels, those of
    partners' labels, both times their coefficients, and the coefficients alone (for the z-loss)."""
    number = (first + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    live = number < rows
    sample = number // labels.inner
    own, other, _ = labels_of(number, sample, live, labels, pairs, BLOCK_BATCH)
    lam = tl.load(pairs.lam_ptr + sample * pairs.lam_stride, mask=live, other=0).to(acc)
    rest = tl.where(live, 1 - lam, 0)
    has_own, has_other = live & (own != labels.ignore_index), live & (other != labels.ignore_index)
    w_own = label_weight(own, has_own, labels, acc)
    w_other = label_weight(other, has_other, labels, acc)
    # A term whose coefficient is 0 is left out.
    joint = tl.where(lam == 0, 0, lam * w_own) + tl.where(rest == 0, 0, rest * w_other)
    count = tl.where(has_own, lam, 0) + tl.where(has_other, rest, 0)
    return tl.sum(w_own, 0), tl.sum(w_other, 0), tl.sum(joint, 0), tl.sum(count, 0)


@triton.jit
def inverse(d, of_zero):
    return tl.where(d == 0, of_zero, 1 / d)


@triton.jit
def given_scales(scales_ptr, acc: tl.constexpr):
    """What mean_scales returns, from the op's scales."""
    own, other = tl.load(scales_ptr), tl.load(scales_ptr + 1)
    z_loss, added = tl.load(scales_ptr + 2), tl.load(scales_ptr + 3)
    return own.to(acc), other.to(acc), z_loss.to(acc), added != 0  # NaN != 0


@triton.jit
def mean_scales(total_rows, labels, pairs, sums_ptr, acc: tl.constexpr, OPT, TILE):
    """1/divisor of the own labels' terms, of the partners', and of the z-loss; and whether the
    mean is 0/0. From all labels, or from the sums of divisors_kernel.

    A term's is NaN where its divisor is 0: the gradient of rows that have the term is NaN."""
    if TILE.BLOCK_LABELS > 0:
        own_sum, other_sum, joint, count = divisor_sums(
            0, total_rows, labels, pairs, acc, TILE.BLOCK_LABELS, TILE.BLOCK_BATCH
        )
    else:
        part = sums_ptr + tl.arange(0, TILE.PARTIAL_SUMS)
        own_sum = tl.sum(tl.load(part), 0)
        other_sum = tl.sum(tl.load(part + TILE.PARTIAL_SUMS), 0)
        joint = tl.sum(tl.load(part + 2 * TILE.PARTIAL_SUMS), 0)
        count = tl.sum(tl.load(part + 3 * TILE.PARTIAL_SUMS), 0)
    if OPT.PER_SAMPLE:
        own_sum, other_sum = joint, joint
        undefined = joint == 0
    else:
        lam = tl.load(pairs.lam_ptr).to(acc)
        undefined = ((own_sum == 0) & (lam != 0)) | ((other_sum == 0) & (1 - lam != 0))
    nan = float("nan")
    return inverse(own_sum, nan), inverse(other_sum, nan), inverse(count, 0), undefined


@triton.jit
def in_shard(label, hot, labels):
    """(label, hot) counted from the shard's first class; -1 and 0 where another shard has it."""
    at = label - labels.first
    inside = (at >= 0) & (at < labels.held)
    return tl.where(inside, at, -1), tl.where(inside, hot, 0)


@triton.jit
def label_coefficients(
    rows, total_rows, labels, pairs, sums_ptr, scales_ptr, keep, base, z_loss, acc: tl.constexpr,
    OPT, TILE,
):  # fmt: skip
    """The coefficients of rows with labels; total_rows: of the whole batch."""
    lam = lam_of(rows, pairs, acc, OPT, TILE)
    rest = 1 - lam
    own_label, other_label, good = labels_of(
        rows.number, rows.sample, rows.here, labels, pairs, TILE.BLOCK_BATCH
    )
    one = tl.full((), 1, acc)
    own_scale, other_scale, z_scale, undefined = one, one, one, one != one
    if OPT.MEAN and scales_ptr is not None:
        own_scale, other_scale, z_scale, undefined = given_scales(scales_ptr, acc)
    elif OPT.MEAN:
        own_scale, other_scale, z_scale, undefined = mean_scales(
            total_rows, labels, pairs, sums_ptr, acc, OPT, TILE
        )
    has_own = rows.here & (own_label != labels.ignore_index) & (lam != 0)
    has_other = rows.here & (other_label != labels.ignore_index) & (rest != 0)
    bad = (good == 0) | (has_own & ((own_label < 0) | (own_label >= labels.classes)))
    bad = bad | (has_other & ((other_label < 0) | (other_label >= labels.classes)))
    bad = rows.here & bad
    own = tl.where(has_own, lam, 0)
    other = tl.where(has_other, rest, 0)
    # The scale of a term that the row does not have may be NaN.
    own_scale, other_scale = tl.where(has_own, own_scale, 0), tl.where(has_other, other_scale, 0)
    own_hot = keep * own * own_scale * label_weight(own_label, has_own, labels, acc)
    other_hot = keep * other * other_scale * label_weight(other_label, has_other, labels, acc)
    base = base * (own * own_scale + other * other_scale)
    if OPT.SHARD:
        own_label, own_hot = in_shard(own_label, own_hot, labels)
        other_label, other_hot = in_shard(other_label, other_hot, labels)
    return Coefficients(
        tl.where(has_own, own_label, -1).to(tl.int32),
        tl.where(has_other, other_label, -1).to(tl.int32),
        own_hot,
        other_hot,
        lam,
        rest,
        keep,
        base,
        one,
        (own + other) * (z_loss * z_scale),
        own_hot + other_hot + base * labels.held,
        has_own | has_other | bad,
        bad,
        undefined,
    )


@triton.jit
def sides_of(rows, target, partner, pairs, OPT, TILE):
    """(sides of the rows, index is good)."""
    other, good = rows.sample, rows.here
    if pairs.perm_ptr is not None:
        other, good = partner_of(
            other, good, pairs.perm_ptr, pairs.uses_ptr, pairs.batch, TILE.BLOCK_BATCH
        )
    own_at, own_col = row_at(target, rows.outer, rows.index, TILE.TARGET_VEC, OPT)
    if OPT.SPATIAL:
        other_at, other_col = row_at(partner, other, rows.index, TILE.PARTNER_VEC, OPT)
    else:
        other_at, other_col = row_at(partner, rows.outer, other, TILE.PARTNER_VEC, OPT)
    return Sides(own_at, own_col, other_at, other_col), good


@triton.jit
def float_coefficients(
    rows, target, partner, pairs, scales_ptr, keep, base, mean_scale, z_loss, acc: tl.constexpr,
    OPT, TILE,
):  # fmt: skip
    """(coefficients, sides) of rows with float targets."""
    scale, z_coef = number(mean_scale, acc), number(z_loss * mean_scale, acc)
    undefined = tl.full((), 0, tl.int1)
    if OPT.MEAN and scales_ptr is not None:
        scale, _, z_scale, undefined = given_scales(scales_ptr, acc)
        z_coef = number(z_loss, acc) * z_scale
    lam = lam_of(rows, pairs, acc, OPT, TILE)
    sides, good = sides_of(rows, target, partner, pairs, OPT, TILE)
    none = tl.full((TILE.BLOCK_ROWS,), -1, tl.int32)
    zero = tl.zeros((TILE.BLOCK_ROWS,), acc)
    z_coef = tl.full((TILE.BLOCK_ROWS,), z_coef, acc)
    bad = rows.here & (good == 0)
    row = Coefficients(
        none, none, zero, zero, lam, 1 - lam, keep, base, scale, z_coef, zero, rows.here, bad,
        undefined,
    )  # fmt: skip
    return row, sides


@triton.jit
def load_side(at, mask, coef):
    """The targets at these pointers; 0, and not read, where the row's coefficient is 0."""
    return tl.load(at, mask=mask & (coef != 0)[:, None], other=0).to(coef.dtype)


@triton.jit
def row_targets(c, mask, row, targets, OPT):
    """t[c] of the classes c in each row, 0 where masked."""
    acc: tl.constexpr = row.lam.dtype
    w = tl.full((1, 1), 1, acc)
    if targets.weight_ptr is not None and (OPT.SMOOTH or not OPT.LABELS):
        w = tl.load(targets.weight_ptr + c, mask=c < targets.classes, other=0).to(acc)[None, :]
    if OPT.LABELS:  # own_hot and other_hot include the class weights of the labels themselves
        t = tl.where(c[None, :] == row.own_label[:, None], row.own_hot[:, None], 0)
        t += tl.where(c[None, :] == row.other_label[:, None], row.other_hot[:, None], 0)
        if OPT.SMOOTH:
            t += row.base[:, None] * w
    else:
        sides = targets.sides
        own = load_side(cells(sides.own_at, c, sides.own_col), mask, row.lam)
        other = load_side(cells(sides.other_at, c, sides.other_col), mask, row.rest)
        mix = row.lam[:, None] * own + row.rest[:, None] * other
        t = tl.where(w == 0, 0, w * row.scale * (row.keep * mix + row.base))
    return tl.where(mask, t, 0)
