"""Triton kernels of the mixed cross-entropy: loss, statistics and gradient, a tile of rows at once.

Logits are addressed as (outer, n, C) with strides: row s of outer index o. Without inner dimensions
the rows are the batch (outer = 1), else each sample is an outer index (SPATIAL). BESIDE: the class
stride is not 1; logits usually have stride 1 along rows, e.g. (B, C, H, W). With
    t[c] = weight[c] * (base + [c == y]*hot + [c == y']*hot')
or, for float targets, weight[c]*scale*((1-eps)*(lam*a[c] + (1-lam)*b[c]) + eps/C), a row has:
    loss = sum_c t[c]*(lse - z[c]) + z_coef*lse**2
    gradient[c] = (sum_c t[c] + 2*z_coef*lse)*softmax[c] - t[c]
If a row's index or label is bad, sum_c t[c] is NaN, and so are its loss and gradient.
"""

import triton
import triton.language as tl

from .kernels import acc_of, aligned, number, partner_of, rounded
from .loss_rows import (
    divisor_sums,
    inverse,
    label_term,
    label_weight,
    labels_of,
    load_logits,
    row_targets,
    through_cap,
)


@triton.jit
def divisors_kernel(
    sums_ptr, target_ptr, target_b_ptr, perm_ptr, lam_ptr, weight_ptr, uses_ptr, rows, B, C, inner,
    lam_stride, ignore_index, ALL: tl.constexpr, N: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """sums[:, program] = divisor_sums over every SUMS-th block of N rows; deterministic."""
    acc: tl.constexpr = sums_ptr.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    own, other = tl.zeros((), acc), tl.zeros((), acc)
    joint, count = tl.zeros((), acc), tl.zeros((), acc)
    for first in range(pid * N, rows, SUMS * N):
        more = divisor_sums(
            first, rows, target_ptr, target_b_ptr, perm_ptr, lam_ptr, weight_ptr, uses_ptr,
            B, C, inner, lam_stride, ignore_index, acc, ALL, N,
        )  # fmt: skip
        own, other, joint, count = own + more[0], other + more[1], joint + more[2], count + more[3]
    tl.store(sums_ptr + pid, own)
    tl.store(sums_ptr + pid + SUMS, other)
    tl.store(sums_ptr + pid + 2 * SUMS, joint)
    tl.store(sums_ptr + pid + 3 * SUMS, count)


@triton.jit
def loss_kernel(
    logits_ptr, out_ptr, loss_ptr, stats_ptr, grad_ptr, target_ptr, target_b_ptr, perm_ptr, lam_ptr,
    weight_ptr, uses_ptr, sums_ptr, B, C, n, rows, row_tiles, ignore_index,
    z_outer, z_row, z_class, g_outer, g_row, g_class, t_outer, t_row, t_class,
    tb_outer, tb_row, tb_class, lam_stride, grad_stride,
    keep: tl.float64, base: tl.float64, z_loss: tl.float64, softcap: tl.float64,
    mean_scale: tl.float64,
    LABELS: tl.constexpr, SPATIAL: tl.constexpr, BESIDE: tl.constexpr, PER_SAMPLE: tl.constexpr,
    MEAN: tl.constexpr, SMOOTH: tl.constexpr, Z_LOSS: tl.constexpr, CAPPED: tl.constexpr,
    FORWARD: tl.constexpr, GRADIENT: tl.constexpr, RESCALE: tl.constexpr,
    ALL: tl.constexpr, N: tl.constexpr, VEC: tl.constexpr, T_VEC: tl.constexpr,
    TB_VEC: tl.constexpr, ALONG: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    WHOLE: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """R rows: FORWARD writes loss and statistics, GRADIENT writes out (upstream 1 in a FORWARD).

    WHOLE: K >= C, the logits are read once and stay in registers. Else K classes at a time, once
    for the online softmax and once for the gradient. out may be the logits in a backward, not in a
    FORWARD: the thread that stores an element has loaded it before, and the row's statistics are in
    separate memory, so no barrier is needed. RESCALE: out holds the gradient for upstream 1; only
    rows with another upstream are written.
    """
    acc: tl.constexpr = acc_of(logits_ptr.dtype.element_ty)
    dtype: tl.constexpr = logits_ptr.dtype.element_ty
    minus_inf = float("-inf")
    if BESIDE:
        z_class, g_class, n = aligned(z_class, VEC), aligned(g_class, VEC), aligned(n, ALONG)
        t_class, tb_class = aligned(t_class, T_VEC), aligned(tb_class, TB_VEC)
    else:
        z_row, g_row, C = aligned(z_row, VEC), aligned(g_row, VEC), aligned(C, ALONG)
        t_row, tb_row = aligned(t_row, T_VEC), aligned(tb_row, TB_VEC)
    z_outer, g_outer = aligned(z_outer, VEC), aligned(g_outer, VEC)
    t_outer, tb_outer = aligned(t_outer, T_VEC), aligned(tb_outer, TB_VEC)
    pid = tl.program_id(0)
    o = (pid // row_tiles).to(tl.int64)
    s = (pid % row_tiles).to(tl.int64) * R + tl.arange(0, R)
    here = s < n
    r = o * n + s
    if SPATIAL:
        b, inner = o + tl.zeros((R,), tl.int64), n
    else:
        b, inner = s, 1
    upstream = tl.full((R,), 1, acc)
    if not FORWARD:
        upstream = tl.load(grad_ptr + r * grad_stride, mask=here, other=1).to(acc)
    if RESCALE:
        here = here & (upstream != 1)
        if tl.sum(here.to(tl.int32), 0) == 0:
            return

    # The coefficients of each row.
    if SPATIAL:  # one scalar, so masks made from it do not split vector accesses of adjacent rows
        lam = tl.zeros((R,), acc) + tl.load(lam_ptr + o * lam_stride).to(acc)
    else:
        lam = tl.load(lam_ptr + b * lam_stride, mask=here, other=0).to(acc)
    rest = 1 - lam
    keep, base = number(keep, acc), number(base, acc)
    undefined = False
    if LABELS:
        mine, theirs, good = labels_of(
            b, r, here, target_ptr, target_b_ptr, perm_ptr, uses_ptr, B, inner, ALL
        )
        one = tl.full((), 1, acc)
        own_scale, other_scale, z_scale = one, one, one
        if MEAN:
            if N > 0:
                own_sum, other_sum, joint, count = divisor_sums(
                    0, rows, target_ptr, target_b_ptr, perm_ptr, lam_ptr, weight_ptr, uses_ptr,
                    B, C, inner, lam_stride, ignore_index, acc, ALL, N,
                )  # fmt: skip
            else:
                part = sums_ptr + tl.arange(0, SUMS)
                own_sum, other_sum = tl.sum(tl.load(part), 0), tl.sum(tl.load(part + SUMS), 0)
                joint = tl.sum(tl.load(part + 2 * SUMS), 0)
                count = tl.sum(tl.load(part + 3 * SUMS), 0)
            if PER_SAMPLE:
                own_sum, other_sum = joint, joint
                undefined = joint == 0
            else:
                only = tl.load(lam_ptr).to(acc)
                undefined = ((own_sum == 0) & (only != 0)) | ((other_sum == 0) & (1 - only != 0))
            own_scale, other_scale, z_scale = inverse(own_sum), inverse(other_sum), inverse(count)
        has_own = here & (mine != ignore_index) & (lam != 0)
        has_other = here & (theirs != ignore_index) & (rest != 0)
        bad = (good == 0) | (has_own & ((mine < 0) | (mine >= C)))
        bad = here & (bad | (has_other & ((theirs < 0) | (theirs >= C))))
        live = has_own | has_other | bad
        own, other = tl.where(has_own, lam, 0), tl.where(has_other, rest, 0)
        own_hot = keep * own * own_scale * label_weight(mine, has_own, weight_ptr, C, acc)
        other_hot = keep * other * other_scale * label_weight(theirs, has_other, weight_ptr, C, acc)
        mine = tl.where(has_own, mine, -1).to(tl.int32)
        theirs = tl.where(has_other, theirs, -1).to(tl.int32)
        base = base * (own * own_scale + other * other_scale)
        z_coef = (own + other) * (number(z_loss, acc) * z_scale)
        mass = own_hot + other_hot + base * C
        t_at, tb_at = s, s  # not used
    else:
        live = here
        j, good = b, here
        if perm_ptr is not None:
            j, good = partner_of(b, here, perm_ptr, uses_ptr, B, ALL)
        bad = here & (good == 0)
        if SPATIAL:
            t_at = target_ptr + o * t_outer + s * t_row
            tb_at = target_b_ptr + j * tb_outer + s * tb_row
        else:
            t_at, tb_at = target_ptr + s * t_row, target_b_ptr + j * tb_row
        z_coef = tl.full((R,), z_loss * mean_scale, acc)
        mass = tl.zeros((R,), acc)
    # DENSE: outside its labels' entries t is not constant, so its mass is summed over the classes.
    DENSE: tl.constexpr = not LABELS or (SMOOTH and weight_ptr is not None)
    if not LABELS:
        mine = tl.full((R,), -1, tl.int32)
        theirs, own_hot, other_hot = mine, mass, mass
    row = (mine, theirs, own_hot, other_hot, lam, rest, base, keep, mean_scale)
    at = (weight_ptr, C, t_at, tb_at, t_class, tb_class)
    z_at = logits_ptr + o * z_outer + s * z_row
    pivot, log_sum = tl.zeros((R,), acc), tl.zeros((R,), acc)
    if not FORWARD:
        pivot = tl.load(stats_ptr + 2 * r, mask=here, other=0)
        log_sum = tl.load(stats_ptr + 2 * r + 1, mask=here, other=0)

    # Pass 1: statistics of the softmax, and dot = sum_c t[c]*(z[c] - pivot) without the labels' own
    # terms. The pivot is the max, or 0 if the max is -inf, since -inf - -inf would give NaN.
    total, dot = tl.zeros((R,), acc), tl.zeros((R,), acc)
    if WHOLE:
        c = tl.arange(0, K)
        mask = live[:, None] & (c < C)[None, :]
        z = load_logits(z_at, c, here, live, C, z_class, acc, BESIDE, CAPPED, softcap)
        if DENSE:
            u = row_targets(c, mask, row, at, LABELS, SMOOTH)
            mass = tl.sum(u, 1)
        else:
            u = mask.to(acc)
        if FORWARD:
            top = tl.max(z, 1)
            pivot = tl.where(top == minus_inf, 0, top)
            e = tl.exp(z - pivot[:, None])
            total = tl.sum(e, 1)
            if SMOOTH or DENSE:
                dot = tl.sum(tl.where(u == 0, 0, u * (z - pivot[:, None])), 1)
    elif FORWARD or DENSE:
        top = tl.full((R,), minus_inf, acc)
        seen = tl.zeros((R,), acc)
        for c0 in range(0, C, K):
            c = c0 + tl.arange(0, K)
            mask = live[:, None] & (c < C)[None, :]
            if DENSE:
                u = row_targets(c, mask, row, at, LABELS, SMOOTH)
            else:
                u = mask.to(acc)
            if FORWARD:
                z = load_logits(z_at, c, here, live, C, z_class, acc, BESIDE, CAPPED, softcap)
                new_top = tl.maximum(top, tl.max(z, 1))
                new = tl.where(new_top == minus_inf, 0, new_top)
                total = total * tl.exp(top - new) + tl.sum(tl.exp(z - new[:, None]), 1)
                if SMOOTH or DENSE:
                    dot += seen * (pivot - new)
                    dot += tl.sum(tl.where(u == 0, 0, u * (z - new[:, None])), 1)
                top, pivot = new_top, new
            if SMOOTH or DENSE:
                seen += tl.sum(u, 1)
        if DENSE:
            mass = seen

    if FORWARD:
        log_sum = tl.log(total)
        if not DENSE:  # t is base, plus hot at the labels; a term with coefficient 0 is left out
            dot = tl.where(base == 0, 0, base * dot)
            dot += label_term(z_at, mine, own_hot, pivot, z_class, CAPPED, softcap)
            dot += label_term(z_at, theirs, other_hot, pivot, z_class, CAPPED, softcap)
        loss = mass * log_sum - dot
        if Z_LOSS:
            lse = pivot + log_sum
            loss += tl.where(z_coef == 0, 0, z_coef * lse * lse)
        loss = tl.where(live, tl.where(bad, float("nan"), loss), 0)
        if MEAN and LABELS:
            loss = tl.where(undefined, float("nan"), loss)
        tl.store(loss_ptr + r, loss, mask=here)
        tl.store(stats_ptr + 2 * r, pivot, mask=here)
        tl.store(stats_ptr + 2 * r + 1, log_sum, mask=here)

    # Pass 2: the gradient, combined in acc and rounded once.
    if GRADIENT:
        if Z_LOSS:
            mass += 2 * z_coef * (pivot + log_sum)
        mass = tl.where(bad, float("nan"), mass)
        # Computed from log_sum in the forward too, so that a second backward gives the same bits.
        share = 1 / tl.exp(log_sum)
        g_at = out_ptr + o * g_outer + s * g_row
        # WHOLE takes this loop too, for one iteration, and recomputes the class numbers. Reusing
        # those of pass 1 would cost a register per element, and spills.
        for c0 in range(0, C, K):
            c = c0 + tl.arange(0, K)
            mask = live[:, None] & (c < C)[None, :]
            if WHOLE and FORWARD:
                p = e * share[:, None]
            else:
                if not WHOLE:
                    z = load_logits(z_at, c, here, live, C, z_class, acc, BESIDE, CAPPED, softcap)
                p = tl.exp(z - pivot[:, None]) * share[:, None]
            if WHOLE and DENSE:
                t = u
            else:
                t = row_targets(c, mask, row, at, LABELS, SMOOTH)
            g = (mass[:, None] * p - t) * upstream[:, None]
            if CAPPED:
                g = through_cap(g, z, number(softcap, acc))
            g = rounded(tl.where(live[:, None], g, 0), dtype)  # 0 if the row is not live
            tl.store(
                g_at[:, None] + (c.to(tl.int64) * g_class)[None, :],
                g,
                mask=here[:, None] & (c < C)[None, :],
            )
