"""The mixed cross-entropy of a shard, some of the classes: its part of each row, and its gradient.

The functions have the arguments of the ops of the same names in schemas.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arithmetic import compute_dtype
from .cross_entropy import capped
from .terms import as_rows, blend, inside, partner, per_row

INF, NAN = float("inf"), float("nan")


class _Rows(NamedTuple):
    z: Tensor  # (rows, C) the logits, capped; 0 in rows that are not live
    t: Tensor  # (rows, C) the targets, times weights and scales
    z_coef: Tensor
    live: Tensor  # the row counts
    bad: Tensor  # its label or index is out of range


def cross_entropy_part(logits: Tensor, *args: Any) -> Tensor:
    row = _rows(logits, *args)
    top = row.z.amax(-1) if row.z.shape[1] else row.z.new_full(row.live.shape, -INF)
    top = torch.where(top == -INF, 0, top)
    z = row.z - top.unsqueeze(1)
    dot = torch.where(row.t == 0, 0, row.t * z).sum(-1)
    mass = row.t.sum(-1).masked_fill(row.bad, NAN)
    part = torch.stack([top, z.exp().sum(-1).log(), dot, mass], 1)
    return torch.where(row.live.unsqueeze(1), part, 0)


def cross_entropy_backward(grad: Tensor, stats: Tensor, logits: Tensor, *args: Any) -> Tensor:
    row = _rows(logits, *args)
    top, log_sum, mass = stats.unsqueeze(-1).unbind(1)
    lse, z_coef = top + log_sum, row.z_coef.unsqueeze(1)
    softmax = torch.exp(row.z - top - log_sum)
    of_lse = mass + torch.where(z_coef == 0, 0, 2 * z_coef * lse)
    gradient = grad.reshape(-1, 1) * (of_lse * softmax - row.t)
    if softcap := args[10]:
        slope = 1 - (row.z / softcap).square()
        gradient = torch.where(row.z == -INF, gradient, gradient * slope)
    gradient = torch.where(row.live.unsqueeze(1), gradient, 0).to(logits.dtype)
    shape = logits.shape[:1] + logits.shape[2:] + logits.shape[1:2]
    return gradient.reshape(shape).movedim(-1, 1)


def cross_entropy_backward_(grad: Tensor, stats: Tensor, logits: Tensor, *args: Any) -> None:
    logits.copy_(cross_entropy_backward(grad, stats, logits, *args))


def _rows(
    logits: Tensor,
    target: Tensor,
    perm: Tensor | None,
    target_b: Tensor | None,
    lam: Tensor,
    weight: Tensor | None,
    scales: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    class_offset: int,
    num_classes: int,
) -> _Rows:
    acc = compute_dtype(logits.dtype)
    shape = logits.shape[:1] + logits.shape[2:]
    keep, base = 1 - label_smoothing, label_smoothing / num_classes
    factors = logits.new_ones(4, dtype=acc) if scales is None else scales.to(acc)
    weights = logits.new_ones(num_classes, dtype=acc) if weight is None else weight.to(acc)
    columns = torch.arange(logits.shape[1], device=logits.device) + class_offset
    own = per_row(lam, torch.empty(shape, device="meta"), 0).expand(shape).reshape(-1)
    other = 1 - own
    bad = torch.zeros_like(own, dtype=torch.bool)
    if perm is not None:
        index, bad_perm = partner(perm)
        target_b = target.index_select(0, index)
        bad = per_row(bad_perm, torch.empty(shape, device="meta"), 0).expand(shape).reshape(-1)
    assert target_b is not None  # the caller gives one of perm and target_b
    if target.is_floating_point():
        mixed = blend(own.unsqueeze(1), as_rows(target.to(acc)), as_rows(target_b.to(acc)), False)
        t = weights[columns] * (factors[0] * (keep * mixed + base))
        live, count = torch.ones_like(bad), torch.ones_like(own)
    else:
        t = logits.new_zeros((own.shape[0], logits.shape[1]), dtype=acc)
        live, count = torch.zeros_like(bad), torch.zeros_like(own)
        for labels, coef, factor in ((target, own, factors[0]), (target_b, other, factors[1])):
            y = labels.reshape(-1)
            safe, outside = inside(y, num_classes)
            counts = (y != ignore_index) & (coef != 0)
            bad = bad | (outside & (y != ignore_index))
            k = torch.where(counts, coef * factor, 0).unsqueeze(1)
            hot = torch.where(columns == safe.unsqueeze(1), keep * weights[safe].unsqueeze(1), 0)
            t = t + k * (hot + base * weights[columns])
            live = live | counts
            count = count + torch.where(counts, coef, 0)
    live = live | bad
    z = torch.where(live.unsqueeze(1), as_rows(logits).to(acc), 0)
    z = capped(z, softcap) if softcap else z
    return _Rows(z, t, count * z_loss * factors[2], live, bad)
