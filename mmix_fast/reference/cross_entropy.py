"""The mixed cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arithmetic import as_lam, compute_dtype
from .terms import Lam, as_rows, blend, followed, partner, per_row, term


def _row_losses(logp: Tensor, q: Tensor, absent: Tensor) -> Tensor:
    # A probability of exactly 0 contributes 0, but 0 * -inf would be NaN. No more is masked: q has
    # a gradient of -logp at 0 too, and NaN logits give NaN, also where all probabilities are 0.
    return -(q * torch.where((q == 0) & absent, 0, logp)).sum(-1)


def _mean(rows: Tensor, total: Tensor) -> Tensor:
    """``rows.sum()/total``, but NaN if total is 0, as in PyTorch.

    The gradient to rows is 0 then, not NaN, so that none leaks into rows without this term.
    """
    zero = total == 0
    return torch.where(zero, float("nan"), rows.sum() / torch.where(zero, 1, total))


def capped(z: Tensor, softcap: float) -> Tensor:
    """``softcap*tanh(z/softcap)``; a masked class (-inf) stays masked."""
    small = softcap * torch.tanh(torch.where(z.isneginf(), 0, z) / softcap)
    return torch.where(z.isneginf(), z, small)


def mixed_cross_entropy(
    logits: Tensor,
    target: Tensor,
    perm: Tensor | None,
    lam: Lam,
    *,
    target_b: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    inplace_backward: bool = False,
) -> Tensor:
    acc = compute_dtype(logits.dtype)
    classes, shape = logits.shape[1], logits.shape[:1] + logits.shape[2:]
    lam_t = as_lam(lam, acc, logits.device)
    own = per_row(lam_t, torch.empty(shape, device="meta"), 0).expand(shape).reshape(-1)
    other = 1 - own
    bad = torch.zeros(shape, dtype=torch.bool, device=logits.device)
    if target.is_floating_point():  # cast before pairing, so that its gradient is rounded once
        target, target_b = target.to(acc), None if target_b is None else target_b.to(acc)
    if perm is not None:
        index, bad_perm = partner(perm)
        target_b = target.index_select(0, index)
        bad = bad | per_row(bad_perm, bad, 0)
    assert target_b is not None  # mmix_fast.functional raises otherwise
    bad = bad.reshape(-1)
    w = torch.ones(classes, dtype=acc, device=logits.device) if weight is None else weight.to(acc)

    if target.is_floating_point():
        t = blend(own.unsqueeze(1), as_rows(target), as_rows(target_b), followed(lam))
        # Smoothing is affine and lam + (1-lam) = 1, so smoothing the mix equals mixing the
        # smoothed targets.
        q_own = w * ((1 - label_smoothing) * t + label_smoothing / classes)
        q_other = torch.zeros_like(q_own)
        valid = other_valid = torch.ones_like(bad)
        totals = (own.new_tensor(own.shape[0]),) * 2
        own_loss, other_loss = torch.ones_like(own), torch.zeros_like(own)
    else:
        labels = target.reshape(-1), target_b.reshape(-1)
        valid, other_valid = (y != ignore_index for y in labels)
        safe = [y.clamp(0, classes - 1) for y in labels]
        hard_own, hard_other = w[safe[0]] * valid, w[safe[1]] * other_valid
        if lam_t.ndim:
            totals = ((term(own, hard_own) + term(other, hard_other)).sum(),) * 2
        else:
            totals = hard_own.sum(), hard_other.sum()
        qs = []
        class_numbers = torch.arange(classes, device=target.device)
        terms = zip(labels, safe, (valid, other_valid), (own, other), totals, strict=True)
        for y, inside, mask, coef, total in terms:
            bad = bad | (mask & ((y < 0) | (y >= classes)))
            count = mask.to(acc)
            if reduction == "mean":  # a term over nothing has a gradient of NaN, as in PyTorch
                count = torch.where(mask & (coef != 0) & (total == 0), float("nan"), count)
            # Not one_hot: it reads values on the host, which tracers do not allow.
            q = (class_numbers == inside.unsqueeze(1)) * (w[inside] * count).unsqueeze(1)
            q = (1 - label_smoothing) * q + label_smoothing / classes * w * count.unsqueeze(1)
            qs.append(q)
        q_own, q_other = qs
        own_loss, other_loss = own, other

    # A row with no label to count has zero gradient, whatever its logits hold. Its logits are
    # replaced by 0 here, since softmax's backward would give NaN for NaN logits.
    live = (valid & (own != 0)) | (other_valid & (other != 0))
    z = torch.where(live.unsqueeze(1), as_rows(logits).to(acc), 0)
    if softcap is not None:
        z = capped(z, softcap)
    logp = z.log_softmax(-1)
    # logp is -inf also at a finite logit far below the largest; where all are -inf, it is NaN.
    absent = z.isneginf() | logp.isneginf()
    a, b = _row_losses(logp, q_own, absent), _row_losses(logp, q_other, absent)
    a = a.masked_fill(bad, float("nan"))
    if z_loss:
        count = own * valid + other * other_valid
        extra = term(count * z_loss, z.logsumexp(-1).square())

    if reduction == "mean" and not lam_t.ndim and not target.is_floating_point():
        loss = term(lam_t, _mean(a, totals[0])) + term(1 - lam_t, _mean(b, totals[1]))
    else:
        loss = term(own_loss, a) + term(other_loss, b)
        if reduction != "none":
            loss = _mean(loss, totals[0]) if reduction == "mean" else loss.sum()
    if z_loss:
        if reduction == "none":
            loss = loss + extra
        else:
            loss = loss + (extra.sum() / count.sum() if reduction == "mean" else extra.sum())
    return loss.reshape(shape) if reduction == "none" else loss
