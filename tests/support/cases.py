"""Shapes, permutations, layouts, the only table of tolerances, and helpers of many tests."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]  # of the repository
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Gradients are rounded once to their dtype: twice half an ulp of the largest entry.
TOLERANCE = {
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
    torch.float32: 3e-6,
    torch.float64: 1e-12,
}
# Values of ATEN_CPU_CAPABILITY; an empty one takes the best that the CPU has, avx512_bf16 too.
ISAS = ("default", "avx2", "avx512", "")


def _long_cycle(n):
    return torch.arange(n).roll(-1)


def _two_cycles(n):
    p = torch.arange(n)
    p[: n // 2 * 2] = p[: n // 2 * 2].reshape(-1, 2).flip(1).reshape(-1)
    return p


PERMS = {
    "identity": torch.arange,
    "flip": lambda n: torch.arange(n).flip(0),
    "roll": lambda n: torch.arange(n).roll(1),
    "long_cycle": _long_cycle,
    "two_cycles": _two_cycles,
    "random": torch.randperm,
}

# name -> (make a tensor of a dtype, batch dimension)
LAYOUTS = {
    "contiguous": (lambda dt: torch.randn(7, 3, 5).to(dt), 0),
    "wide": (lambda dt: torch.randn(5, 70, 41).to(dt), 0),
    "one_row": (lambda dt: torch.randn(1, 9).to(dt), 0),
    "vector": (lambda dt: torch.randn(13).to(dt), 0),
    "channels_last": (
        lambda dt: torch.randn(6, 3, 4, 5).to(dt).contiguous(memory_format=torch.channels_last),
        0,
    ),
    "channels_last_3d": (
        lambda dt: (
            torch.randn(4, 3, 2, 4, 5).to(dt).contiguous(memory_format=torch.channels_last_3d)
        ),
        0,
    ),
    "sliced": (lambda dt: torch.randn(16, 33).to(dt)[::2], 0),
    "columns": (lambda dt: torch.randn(8, 33).to(dt)[:, ::2], 0),
    "transposed": (lambda dt: torch.randn(33, 8).to(dt).t(), 0),
    "sequence_first": (lambda dt: torch.randn(5, 8, 17).to(dt), 1),
    "last_dim": (lambda dt: torch.randn(3, 4, 6).to(dt), -1),
    "empty_batch": (lambda dt: torch.randn(0, 4).to(dt), 0),
    "empty_sample": (lambda dt: torch.randn(4, 0, 3).to(dt), 0),
}


def expected_mix(x, perm, lam, dim=0):
    """The formula in float32 (float64 for float64), each operation rounded once."""
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    lam = torch.as_tensor(lam, dtype=acc)
    if lam.ndim:
        lam = lam.reshape([-1 if d == dim % x.ndim else 1 for d in range(x.ndim)])
    return (lam * x.to(acc) + (1 - lam) * x.index_select(dim, perm).to(acc)).to(x.dtype)


def eager_loss(z, a, b, lam, **kw):
    """The mixed loss as two calls of F.cross_entropy: a has the weight lam, b has 1 - lam."""
    return lam * F.cross_entropy(z, a, **kw) + (1 - lam) * F.cross_entropy(z, b, **kw)


SIZED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def any_bits(like, dtype):
    """A tensor like this, of random bits (NaNs with payload, -0.0), and its view as integers."""
    if dtype == torch.bool:
        x = torch.empty_strided(like.shape, like.stride(), dtype=dtype).copy_(like > 0)
    else:
        sized = SIZED[dtype.itemsize]
        low, high = torch.iinfo(sized).min, torch.iinfo(sized).max
        x = torch.empty_strided(like.shape, like.stride(), dtype=sized)
        x = x.copy_(torch.randint(low, high, like.shape, dtype=sized)).view(dtype)
    return x, x.view(SIZED[dtype.itemsize])


def meta(*shape, dtype=torch.float32):
    """A tensor without data, for code that reads metadata alone."""
    return torch.empty(shape, dtype=dtype, device="meta")


def run(code, **env):
    """Runs Python code in a process of its own, with these environment variables added."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}
    )


def check_pairing(mix, pairing, size):
    """The perm of sample_mix(size, ..., pairing=pairing), and its inverse."""
    rows = torch.arange(size)
    assert torch.equal(mix.perm.sort().values, rows)
    assert torch.equal(mix.inverse[mix.perm], rows)
    if pairing == "flip":
        assert torch.equal(mix.perm, rows.flip(0))
    if pairing == "roll":
        assert torch.equal(mix.perm, rows.roll(1))
    if pairing == "derangement" and size > 1:
        assert (mix.perm != rows).all()
