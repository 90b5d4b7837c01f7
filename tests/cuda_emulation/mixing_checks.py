"""Small mixing problems that run every kernel, code path and barrier.

Each check returns True if the result is right. The tests run them with threads in random order,
with one barrier disabled (then a check must fail), and under ThreadSanitizer.
"""

import torch

from tests.cuda_emulation.emulation import NAMESPACE

OPS = getattr(torch.ops, NAMESPACE)
H100 = (132, 227 * 1024)
# Code path -> ((multiprocessors, shared bytes of a block), shape of a base tensor, x made from it).
WAYS = {
    "slab": ((2, 227 * 1024), (37, 300), lambda t: t),
    "slab_odd": ((2, 227 * 1024), (37, 301), lambda t: t),
    "slab_many_tiles": ((1, 227 * 1024), (8, 10_001), lambda t: t),
    "slab_runs": ((2, 227 * 1024), (5, 9, 33), lambda t: t.permute(1, 0, 2)),
    "slab_aligned": ((2, 227 * 1024), (37, 304), lambda t: t),
    "slab_aligned_tiles": ((1, 227 * 1024), (40, 2064), lambda t: t),
    "slab_aligned_runs": ((2, 227 * 1024), (5, 9, 48), lambda t: t.permute(1, 0, 2)),
    # Rounds of the grid: one, several, and with fewer lanes for a row.
    "gather": ((8, 64 * 1024), (1200, 80), lambda t: t),
    "gather_rounds": ((4, 40 * 1024), (900, 304), lambda t: t),
    "gather_narrow": ((2, 20 * 1024), (1300, 72), lambda t: t),
    "gather_runs": ((2, 24 * 1024), (3, 700, 48), lambda t: t.permute(1, 0, 2)),
    "gather_odd": ((1, 46 * 1024), (100, 1333), lambda t: t),
    "gather_strided": ((2, 227 * 1024), (40, 50), lambda t: t[:, ::2]),
    # Claims in global memory.
    "gather_global": ((3, 99 * 1024), (4200, 24), lambda t: t),
    "gather_odd_global": ((2, 64 * 1024), (4200, 7), lambda t: t),
    # Shared memory has no room for a piece of every row.
    "gather_outside": ((2, 9400), (4000, 4), lambda t: t[:, ::2]),
    "gather_outside_global": ((1, 4400), (4200, 6), lambda t: t[:, ::2]),
}


def truth(x, index, own, other, second=None):
    """own[i]*x[i] + other[i]*second[index[i]], each operation rounded; NaN where index is negative.

    ``second`` is x by default. A term with coefficient 0 is left out, whatever the other is.
    """
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = [-1] + [1] * (x.ndim - 1)
    own, other = own.to(acc).reshape(shape), other.to(acc).reshape(shape)
    a, b = x.to(acc), (x if second is None else second)[index.clamp(0)].to(acc)
    alone = torch.where(own != 0, own * a, torch.where(other != 0, other * b, 0))
    out = torch.where((own == 0) | (other == 0), alone, own * a + other * b)
    return out.masked_fill((index < 0).reshape(shape), float("nan")).to(x.dtype)


def links(perm, adjoint):
    """The partner of each row; -1 where the entry of perm is out of range or occurs twice."""
    n = len(perm)
    inside = (perm >= 0) & (perm < n)
    uses = torch.bincount(perm[inside], minlength=n)
    good = inside & (uses[perm.clamp(0, n - 1)] == 1)
    if not adjoint:
        return torch.where(good, perm, -1)
    inverse = torch.full((n,), -1)
    inverse[perm[good]] = torch.arange(n)[good]
    return inverse


def noise(n):
    """Not a permutation: some entries are out of range, some occur twice."""
    return torch.randint(-2, n + 2, (n,))


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def check(emulator, way, dtype, perm_of, per_sample=True, modes=("out", "in", "adjoint", "batch")):
    device, shape, view = WAYS[way]
    emulator.set_device(*device)
    try:
        for mode in modes:
            x = view(torch.randn(shape).to(dtype))
            n = x.shape[0]
            perm = perm_of(n)
            lam = torch.rand(n if per_sample else ()).to(
                torch.float64 if dtype == torch.float64 else torch.float32
            )
            if per_sample:  # 0 and 1 too; if n allows, the adjoint pairs them in every way
                some = torch.randperm(n)
                lam[some[: n // 4]], lam[some[n // 4 : n // 2]] = 0, 1
            rows = lam.expand(n).clone()
            index = links(perm, mode == "adjoint")
            other = 1 - rows[index.clamp(0)] if mode == "adjoint" else 1 - rows
            want = truth(x, index, rows, other)
            if mode == "in":
                got = x
                OPS.mix_(x, perm, lam, 0)
            elif mode == "batch":  # in place, and the targets in the same launch
                got, y = x, torch.randint(0, 5, (n,))
                soft = OPS.mix_batch_(x, y, perm, lam, 5, 0.0, -100, torch.float32)
                eye = torch.eye(5, dtype=lam.dtype)
                if not same(soft, truth(eye[y], index, rows, other).float()):
                    return False
            else:
                got = OPS.mix(x, perm, lam, 0, mode == "adjoint")
            if not same(got, want):
                return False
    finally:
        emulator.set_device(*H100)
    return True


def check_targets(emulator, dtype, shared=H100[1], batch=70, classes=11):
    """mix_targets with this dtype; mix_batch_ too, unless shared memory is reduced."""
    emulator.set_device(2, shared)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    try:
        y, perm, lam = torch.randint(0, classes, (batch,)), torch.randperm(batch), torch.rand(batch)
        lam, x = lam.to(acc), torch.randn(batch, 40).to(dtype)
        eye = torch.eye(classes, dtype=acc)
        want = truth(eye[y], perm, lam, 1 - lam).to(dtype)
        if not same(OPS.mix_targets(y, perm, lam, classes, 0.0, -100, dtype), want):
            return False
        if shared < H100[1]:
            return True
        mixed = truth(x, perm, lam, 1 - lam)
        soft = OPS.mix_batch_(x, y, perm, lam, classes, 0.0, -100, dtype)
        return same(soft, want) and same(x, mixed)
    finally:
        emulator.set_device(*H100)


def random_boxes(n, height, width):
    """A box for each row, (n, 4), and which pixels are inside: some boxes are empty, some whole."""
    top, bottom = torch.randint(0, height + 1, (n, 2)).sort().values.unbind(1)
    left, right = torch.randint(0, width + 1, (n, 2)).sort().values.unbind(1)
    y, column = torch.arange(height)[:, None], torch.arange(width)
    a, b, c, d = (edge[:, None, None, None] for edge in (top, bottom, left, right))
    inside = (y >= a) & (y < b) & (column >= c) & (column < d)
    return torch.stack([top, bottom, left, right], 1), inside


def check_cutmix(emulator, dtype, perm_of, shared=H100[1], shape=(40, 2, 5, 6), view=None):
    """A random box for each row."""
    emulator.set_device(2, shared)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    try:
        n = shape[0]
        x, lam, perm = torch.randn(shape).to(dtype), torch.rand(n).to(acc), perm_of(n)
        x = view(x) if view else x
        boxes, inside = random_boxes(n, *x.shape[-2:])
        want = torch.where(inside, truth(x, links(perm, False), lam, 1 - lam), x)
        OPS.cutmix_(x, perm, boxes, lam)
        return same(x, want)
    finally:
        emulator.set_device(*H100)


def check_paste(emulator, dtype, perm_of, shared=H100[1], shape=(40, 2, 5, 6), view=None):
    """A paste of integers, with a box for each row and with one for all. A bad row stays."""
    emulator.set_device(2, shared)
    try:
        info, n = torch.iinfo(dtype), shape[0]
        for one in (False, True):
            x, perm = torch.randint(info.min, info.max, shape, dtype=dtype), perm_of(n)
            x = view(x) if view else x
            boxes, inside = random_boxes(1 if one else n, *x.shape[-2:])
            index = links(perm, False)
            partners = x[torch.where(index < 0, torch.arange(n), index)]
            want = torch.where(inside, partners, x)
            OPS.cutmix_(x, perm, boxes[0] if one else boxes, torch.zeros(()))
            if not torch.equal(x, want):
                return False
    finally:
        emulator.set_device(*H100)
    return True


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


# shared bytes, shape, view: vectors along x, along the channels, and along both. Channels between y
# and x: a vector of 4 elements would begin again at x = 0.
CUTMIX = (
    (H100[1], (9, 2, 5, 16), None),
    (H100[1], (9, 16, 5, 3), channels_last),
    (H100[1], (9, 3, 5, 16), channels_last),
    (H100[1], (9, 5, 8, 6), lambda x: x.transpose(1, 2)),
    (H100[1], (9, 2, 5, 5), None),
    (16, (9, 2, 5, 16), None),
    (H100[1], (4200, 1, 2, 8), None),
)
# Integers of every size, for the checks of each dtype.
BITS = {
    torch.float16: torch.uint8,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


# A second batch: shape and view of x, and whether other has gaps; vectors, single elements, both
# with runs, rows that leave lanes idle, many tiles of few rows.
OTHER = (
    ((37, 304), lambda t: t, False),
    ((37, 301), lambda t: t, False),
    ((700, 24), lambda t: t, False),
    ((700, 9), lambda t: t, False),
    ((3, 20_000), lambda t: t, False),
    ((5, 9, 48), lambda t: t.permute(1, 0, 2), False),
    ((40, 50), lambda t: t[:, ::2], False),
    ((9, 64), lambda t: t, True),
)


def check_other(emulator, dtype, shape, view, gaps, perm_of=torch.randint):
    """mix_other in place and not, with and without perm, and the gradients to both batches."""
    emulator.set_device(2, H100[1])
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    try:
        x = view(torch.randn(shape).to(dtype))
        n = x.shape[0]
        samples = n // 2 + 1
        other = torch.randn(samples, *x.shape[1:-1], x.shape[-1] + 16 * gaps).to(dtype)
        other = other[..., : x.shape[-1]]
        perm = perm_of(0, samples, (n,))
        good = (perm >= 0) & (perm < samples)
        lams = torch.tensor(0.3, dtype=acc), torch.rand(n, dtype=acc)
        lams[1][::3], lams[1][1::4] = 0, 1
        for lam in lams:
            rows = lam.expand(n)
            want = truth(x, perm.where(good, -1), rows, 1 - rows, other)
            second = x.flip(0).contiguous()
            paired = truth(x, torch.arange(n), rows, 1 - rows, second)
            right = same(OPS.mix_other(x, other, perm, lam, 0), want)
            right &= same(OPS.mix_other(x, second, None, lam, 0), paired)
            mixed = view(torch.empty(shape, dtype=dtype))
            mixed.copy_(x)
            OPS.mix_other_(mixed, other, perm, lam, 0)
            if not (right and same(mixed, want) and check_sums(x, perm, samples, lam)):
                return False
    finally:
        emulator.set_device(*H100)
    return True


def check_sums(x, perm, samples, weight):
    """sum_rows_ of the rows by perm, and of each row alone."""
    index, order = perm.sort(stable=True)
    begin = torch.searchsorted(index, torch.arange(samples + 1))
    wide, rows = x.to(weight.dtype), weight.expand(len(x))
    want = torch.zeros(samples, *x.shape[1:], dtype=weight.dtype)
    for i, k in enumerate(perm.tolist()):
        if 0 <= k < samples and rows[i] != 0:
            want[k] += rows[i] * wide[i]
    got = torch.empty(want.shape, dtype=x.dtype)
    OPS.sum_rows_(got, x, weight, order, begin, 0)
    alone = torch.empty_like(x)
    OPS.sum_rows_(alone, x, weight, None, None, 0)
    each = rows.reshape(-1, *[1] * (x.ndim - 1))
    return same(got, want.to(x.dtype)) and same(alone, (each * wide).to(x.dtype))


def check_pairs(dtype, batch=70, classes=11):
    """mix_targets with the partners' labels, and with their probabilities."""
    lam = torch.rand(batch).to(torch.float64 if dtype == torch.float64 else torch.float32)
    y, y_b, eye = *torch.randint(0, classes, (2, batch)), torch.eye(classes, dtype=lam.dtype)
    rest = (classes, 0.0, -100, dtype)
    want = truth(eye[y], torch.arange(batch), lam, 1 - lam, eye[y_b]).to(dtype)
    hot, hot_b = eye[y].to(dtype), eye[y_b].to(dtype)
    return same(OPS.mix_targets(y, None, lam, *rest, y_b), want) and same(
        OPS.mix_targets(hot, None, lam, *rest, hot_b), want
    )


def stray(low, high, shape):
    """Some indices are out of range, also beyond 32 bits."""
    index = torch.randint(low - 2, high + 2, shape)
    index[0] = 2**32
    return index


def run_all(emulator, dtype, perms=(torch.randperm, noise)):
    """True if every check passes."""
    return (
        all(check_other(emulator, dtype, *o, p) for o in OTHER for p in (torch.randint, stray))
        and check_pairs(dtype)
        and all(check(emulator, way, dtype, p) for way in WAYS for p in perms)
        and all(check_targets(emulator, dtype, shared) for shared in (H100[1], 16))
        and all(check_cutmix(emulator, dtype, p, s) for p in perms for s in (H100[1], 16))
        and all(check_cutmix(emulator, dtype, p, *options) for p in perms for options in CUTMIX)
        and all(check_paste(emulator, BITS[dtype], p, *o) for p in perms for o in CUTMIX)
    )


def run_few(emulator, dtype):
    """Fewer checks, for ThreadSanitizer, which is slow: mostly in place, where races are likeliest.

    They all run even if one fails: ThreadSanitizer does not report every race that it meets.
    """
    # The others differ from these in addresses alone.
    ways = ["slab", "slab_odd", "slab_many_tiles", "slab_aligned", "slab_aligned_tiles"]
    ways += ["gather_rounds", "gather_odd", "gather_global", "gather_outside"]
    right = [
        check(emulator, way, dtype, p, modes=("in",))
        for way in ways
        for p in (torch.randperm, noise)
    ]
    right.append(check(emulator, "slab", dtype, torch.randperm, modes=("out", "adjoint")))
    right.append(check(emulator, "gather_global", dtype, torch.randperm, modes=("adjoint",)))
    right += [check_targets(emulator, dtype, shared) for shared in (H100[1], 16)]
    right += [check_cutmix(emulator, dtype, noise, *options) for options in CUTMIX[:2]]
    right.append(check_cutmix(emulator, dtype, noise))
    right += [check_paste(emulator, BITS[dtype], noise, *options) for options in CUTMIX[:2]]
    right += [check_other(emulator, dtype, *o, stray) for o in OTHER[:3]]
    right.append(check_pairs(dtype))
    return all(right)
