"""The mixed targets t of the binary cross-entropy.

t = fl(fl(lam*q) + fl(fl(1-lam)*q')), where q = fl(fl(keep*target) + base). A target_threshold
decides between adjacent floats, so under one t has the same bits on every backend: such a launch is
without fused multiply-add, except for tl.fma.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .loss_rows import lam_of
from .loss_targets import labels_of, load_side


class LabelTargets(NamedTuple):
    """t of each row: at its label, at its partner's, and at every other class."""

    own_label: Any
    other_label: Any
    own: Any
    other: Any
    rest: Any


@triton.jit
def above(t, threshold, OPT):
    """1 where t is strictly above the threshold, else 0; NaN stays."""
    if OPT.THRESHOLD:
        t = tl.where(t > threshold, 1, tl.where(t == t, 0, t))
    return t


@triton.jit
def poisoned(lam, good):
    """(lam, 1 - lam), NaN in rows that are not good: so are t, loss and gradient of such a row."""
    lam = tl.where(good, lam, float("nan"))
    return lam, 1 - lam


@triton.jit
def label_targets(rows, labels, pairs, hot, base, threshold, acc: tl.constexpr, OPT, TILE):
    """(LabelTargets, good) of rows with labels: q is hot at the label, else base."""
    own, other, good = labels_of(
        rows.number, rows.sample, rows.here, labels, pairs, TILE.BLOCK_BATCH
    )
    good = good & (own >= 0) & (own < labels.classes) & (other >= 0) & (other < labels.classes)
    lam, rest = poisoned(lam_of(rows, pairs, acc, OPT, TILE), good)
    same = own == other
    both = lam * hot + rest * hot
    at_own = tl.where(same, both, lam * hot + rest * base)
    at_other = tl.where(same, both, lam * base + rest * hot)
    t = LabelTargets(
        own.to(tl.int32),
        other.to(tl.int32),
        above(at_own, threshold, OPT),
        above(at_other, threshold, OPT),
        above(lam * base + rest * base, threshold, OPT),
    )
    return t, good


@triton.jit
def of_labels(c, row):
    """t of the classes c."""
    t = tl.where(c[None, :] == row.other_label[:, None], row.other[:, None], row.rest[:, None])
    return tl.where(c[None, :] == row.own_label[:, None], row.own[:, None], t)


@triton.jit
def target_cells(at, c, col, OPT, TILE):
    """cells, in vectors of as many elements as those of logits. With 16 of one byte, the compiler
    would give a thread 16 adjacent logits too: four accesses, each of which skips bytes."""
    # Not a call of cells: the hint must be on the addition itself.
    at = at[:, None] + (c.to(tl.int64) * col)[None, :]
    VEC: tl.constexpr = TILE.VEC
    return tl.max_contiguous(at, (VEC, 1) if OPT.BESIDE else (1, VEC))


@triton.jit
def of_floats(c, mask, sides, row_lam, lam, rest, keep, base, threshold, OPT, TILE):
    """t of the classes c, from targets of the logits' shape. A side whose coefficient is 0 is not
    read; row_lam tells which, since masks made from lam would split vector accesses."""
    own_at = target_cells(sides.own_at, c, sides.own_col, OPT, TILE)
    other_at = target_cells(sides.other_at, c, sides.other_col, OPT, TILE)
    own, other = load_side(own_at, mask, row_lam), load_side(other_at, mask, 1 - row_lam)
    if OPT.SMOOTH:
        own, other = keep * own + base, keep * other + base
    return above(lam[:, None] * own + rest[:, None] * other, threshold, OPT)
