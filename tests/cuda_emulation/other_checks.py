"""Small problems of mixing with a second batch, in the emulator."""

import torch

from tests.cuda_emulation.expected_mix import H100, OPS, same, truth

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
