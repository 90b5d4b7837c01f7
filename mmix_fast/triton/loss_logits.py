"""The loss kernels' access to logits, and the cap on them."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .loss_rows import cells


class Logits(NamedTuple):
    """The logits of the rows of one program."""

    at: Any  # of each row
    col: Any
    classes: Any
    here: Any  # the row exists
    live: Any  # the row counts
    softcap: Any


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
def load_logits(z, c, OPT):
    """Logits of the classes c; -inf past the last class, and in rows that are not live."""
    # BESIDE: a vector access covers several rows, so rows that are not live are loaded too.
    rows = z.here if OPT.BESIDE else z.live
    mask = rows[:, None] & (c < z.classes)[None, :]
    block = tl.load(cells(z.at, c, z.col), mask=mask, other=float("-inf")).to(z.softcap.dtype)
    if OPT.BESIDE:
        block = tl.where(z.live[:, None], block, float("-inf"))
    if OPT.CAPPED:
        block = capped(block, z.softcap)
    return block


@triton.jit
def label_term(z, label, hot, pivot, OPT):
    """hot*(z[label] - pivot) of each row, 0 where hot is 0. Not after they are overwritten."""
    logit = tl.load(z.at + label.to(tl.int64) * z.col, mask=hot != 0, other=0).to(hot.dtype)
    if OPT.CAPPED:
        logit = capped(logit, z.softcap)
    return tl.where(hot == 0, 0, hot * (logit - pivot))


@triton.jit
def through_cap(g, z, softcap):
    """Converts g, the gradient to the capped logits z, to the gradient to the logits themselves.

    A masked class (-inf) was not capped.
    """
    u = z / softcap
    return tl.where(z == float("-inf"), g, g * (1 - u * u))
