"""How near does each op come to the memory's bandwidth? On a GPU, with a cold cache.

GB/s here are compulsory bytes over time: 2N for mixing, 2NC for the loss with its gradient. The
ceiling is a copy of the same bytes. Inputs rotate over many times the L2 cache, so that nothing is
found there; results are checked before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

import mmix_fast

from .harness import save
from .mix import lerp, naive, timm_style_

ROTATE_BYTES = 512 << 20  # H200 and B200 have the largest L2: 50 to 126 MB
ROUNDS, LAUNCHES = 15, 20
MIX_SHAPES = ((64, 256, 56, 56), (256, 4096), (1024, 16384), (8, 512, 4096), (4096, 1023))
LOSS_SHAPES = ((16384, 10), (4096, 1000), (2048, 21841), (4096, 32000), (1024, 128256))
DTYPES = (torch.bfloat16, torch.float32)
Op = Callable[[int], object]


def seconds(op: Op, copies: int) -> float:
    """Median of ROUNDS; op(k) works on the k-th copy of its inputs."""
    for k in range(copies):
        op(k)
    times = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
        begin.record()
        for k in range(LAUNCHES):
            op(k % copies)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000 / LAUNCHES)
    return median(times)


def table(title: str, rivals: dict[str, Op], copies: int, compulsory: int) -> dict:
    rate = {name: compulsory / seconds(op, copies) / 1e9 for name, op in rivals.items()}
    print(title)
    for name, value in rate.items():
        print(f"    {name:<24}{value:>8.0f} GB/s {value / rate['copy']:>7.1%} of a copy")
    return {"title": title, "gb_per_s": {name: round(v, 1) for name, v in rate.items()}}


def mixing(shape: tuple[int, ...], dtype: torch.dtype) -> dict:
    size = torch.Size(shape).numel() * dtype.itemsize
    copies = max(2, ROTATE_BYTES // size)
    xs = [torch.randn(shape, device="cuda").to(dtype) for _ in range(copies)]
    into = torch.empty_like(xs[0])
    perm, lam = torch.randperm(shape[0], device="cuda"), torch.full((), 0.3, device="cuda")
    compiled = torch.compile(naive)
    want = naive(xs[0].float(), perm, lam).to(dtype)
    for got in (mmix_fast.mix(xs[0], perm, lam), mmix_fast.mix_(xs[0].clone(), perm, lam)):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    rivals: dict[str, Op] = {
        "copy": lambda k: into.copy_(xs[k]),
        "fused mix_": lambda k: mmix_fast.mix_(xs[k], perm, lam),
        "fused mix": lambda k: mmix_fast.mix(xs[k], perm, lam),
        "eager": lambda k: naive(xs[k], perm, lam),
        "lerp": lambda k: lerp(xs[k], perm, lam),
        "timm in place": lambda k: timm_style_(xs[k], perm, lam),
        "compiled": lambda k: compiled(xs[k], perm, lam),
    }
    return table(f"mix {dtype} {shape}", rivals, copies, 2 * size)


def two_losses(z: Tensor, y: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    return lam * F.cross_entropy(z, y) + (1 - lam) * F.cross_entropy(z, y[perm])


def loss(shape: tuple[int, int], dtype: torch.dtype) -> dict:
    size = shape[0] * shape[1] * dtype.itemsize
    copies = max(2, ROTATE_BYTES // size)
    zs = [torch.randn(shape, device="cuda").to(dtype).requires_grad_() for _ in range(copies)]
    y = torch.randint(0, shape[1], shape[:1], device="cuda")
    perm, lam = torch.randperm(shape[0], device="cuda"), torch.full((), 0.3, device="cuda")
    into = torch.empty_like(zs[0])
    compiled = torch.compile(two_losses)

    def both(f: Callable[..., Tensor], z: Tensor) -> Tensor:
        return torch.autograd.grad(f(z, y, perm, lam), z)[0]

    want = both(two_losses, zs[0].detach().double().requires_grad_())
    got = both(mmix_fast.mixed_cross_entropy, zs[0])
    torch.testing.assert_close(got.double(), want, rtol=2e-2, atol=1e-6)
    rivals: dict[str, Op] = {
        "copy": lambda k: into.copy_(zs[k].detach()),
        "fused": lambda k: both(mmix_fast.mixed_cross_entropy, zs[k]),
        "two cross-entropies": lambda k: both(two_losses, zs[k]),
        "compiled": lambda k: both(compiled, zs[k]),
    }
    return table(f"loss and gradient {dtype} {shape}", rivals, copies, 2 * size)


def main() -> None:
    status = mmix_fast.backends()["cuda"]
    if not status.usable:
        print(f"skipped: no cuda backend here: {'; '.join(status.reasons)}")
        return
    print(torch.cuda.get_device_name())
    rows = []
    with mmix_fast.use_backend("cuda"):
        for dtype in DTYPES:
            for shape in MIX_SHAPES:
                rows.append(mixing(shape, dtype))
                torch._dynamo.reset()
            for shape in LOSS_SHAPES:
                rows.append(loss(shape, dtype))
                torch._dynamo.reset()
    save("gpu", rows)
