"""What does mixing cost, against the code people write?"""

from __future__ import annotations

import torch
from torch import Tensor

import mmix_fast

from .harness import compare, save

SHAPES = ((128, 64, 32, 32), (128, 256, 14, 14), (256, 4096), (1024, 1024))
OVER_100_MB = (256, 128, 32, 32)


def naive(x: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    return lam * x + (1 - lam) * x[perm]


def lerp(x: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    return torch.lerp(x[perm], x, lam.to(x.dtype))


def timm_style_(x: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    other = x[perm].mul_(1 - lam)
    return x.mul_(lam).add_(other)


def forward(shape: tuple[int, ...], dtype: torch.dtype, budget_s: float) -> dict:
    x, perm, lam = torch.randn(shape).to(dtype), torch.randperm(shape[0]), torch.tensor(0.3)
    compiled = torch.compile(naive)
    want = naive(x.float(), perm, lam).to(dtype)
    torch.testing.assert_close(mmix_fast.mix_(x.clone(), perm, lam), want, rtol=0, atol=0)
    torch.testing.assert_close(timm_style_(x.clone(), perm, lam), want, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(compiled(x, perm, lam), want, rtol=2e-2, atol=2e-2)
    rivals = {
        "fused": lambda: mmix_fast.mix_(x, perm, lam),
        "eager": lambda: naive(x, perm, lam),
        "timm in place": lambda: timm_style_(x, perm, lam),
        "lerp": lambda: lerp(x, perm, lam),
        "compiled": lambda: compiled(x, perm, lam),
        "mul_": lambda: x.mul_(1.0),  # no rival: the least that any pass in place can take
    }
    floors = {"eager": 10.0, "timm in place": 3.0, "compiled": 1.5}
    return compare(f"mix_ forward {dtype} {shape}", rivals, floors, budget_s)


def train(shape: tuple[int, ...], dtype: torch.dtype, budget_s: float) -> dict:
    x = torch.randn(shape).to(dtype).requires_grad_()
    perm, lam, upstream = torch.randperm(shape[0]), torch.tensor(0.3), torch.randn(shape).to(dtype)
    compiled = torch.compile(naive)

    def both(op):
        return torch.autograd.grad(op(x, perm, lam), x, upstream)

    torch.testing.assert_close(both(mmix_fast.mix), both(naive), rtol=2e-2, atol=2e-2)
    rivals = {
        "fused": lambda: both(mmix_fast.mix),
        "eager": lambda: both(naive),
        "lerp": lambda: both(lerp),
        "compiled": lambda: both(compiled),
        "x * lam": lambda: both(
            lambda x, perm, lam: x * lam
        ),  # no rival: two fresh results, no perm
    }
    faults = shape == SHAPES[0]  # page faults of fresh 33 MB buffers bound every rival here
    floors = {"eager": 5.0 if faults else 10.0, "compiled": 2.0 if faults else 4.0}
    return compare(f"mix forward+backward {dtype} {shape}", rivals, floors, budget_s)


def over_100_mb(budget_s: float) -> dict:
    x, perm = torch.randn(OVER_100_MB), torch.randperm(OVER_100_MB[0])
    rivals = {"fused": lambda: mmix_fast.mix_(x, perm, 0.3), "mul_": lambda: x.mul_(1.0001)}
    # At most 1.5 times mul_: the ratio mul_/fused must be at least 1/1.5.
    return compare(
        f"mix_ forward over 100 MB {torch.float32} {OVER_100_MB}", rivals, {"mul_": 0.667}, budget_s
    )


def main(
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16),
    shapes: tuple[tuple[int, ...], ...] = SHAPES,
    budget_s: float = 2.0,
) -> list[dict]:
    rows = []
    for dtype in dtypes:
        for shape in shapes:
            rows.append(forward(shape, dtype, budget_s))
            rows.append(train(shape, dtype, budget_s))
            torch._dynamo.reset()
    rows.append(over_100_mb(budget_s))
    save("mix", rows)
    return rows
