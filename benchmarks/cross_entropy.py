"""What does the mixed loss and its gradient cost, against two F.cross_entropy?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import mmix_fast

from .harness import compare, save

# (shape, floors for inplace_backward, floors for a fresh buffer): (eager, compiled or None)
CASES = (
    ((512, 21841), (20.0, 5.0), (5.0, 1.3)),
    ((1024, 32000), (20.0, 5.0), (5.0, 1.3)),
    ((256, 1000), (4.0, None), (4.0, None)),
    ((128, 100), (4.0, None), (4.0, None)),
    ((128, 10), (2.0, None), (2.0, None)),
)


def naive(z: Tensor, y: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    return lam * F.cross_entropy(z, y) + (1 - lam) * F.cross_entropy(z, y[perm])


def one(case, dtype: torch.dtype, inplace: bool, budget_s: float) -> dict:
    shape, inplace_floors, fresh_floors = case
    floors = dict(zip(("eager", "compiled"), inplace_floors if inplace else fresh_floors))  # noqa: B905
    z = torch.randn(shape).to(dtype).requires_grad_()
    y, perm = torch.randint(0, shape[1], shape[:1]), torch.randperm(shape[0])
    lam = torch.tensor(0.3)
    compiled = torch.compile(naive)

    def fused(z: Tensor) -> Tensor:
        return mmix_fast.mixed_cross_entropy(z, y, perm, lam, inplace_backward=inplace)

    def both(loss, logits):
        return torch.autograd.grad(loss(logits), logits)[0]

    check = z.detach().clone().requires_grad_()
    want = both(lambda t: naive(t, y, perm, lam), z.detach().float().requires_grad_())
    torch.testing.assert_close(both(fused, check).float(), want, rtol=2e-2, atol=1e-4)
    # In place, the gradient becomes the next round's logits: other numbers, the same work, no copy.
    own = z.detach().clone().requires_grad_()
    rivals = {
        "fused": lambda: both(fused, own),
        "eager": lambda: both(lambda t: naive(t, y, perm, lam), z),
        "compiled": lambda: both(lambda t: compiled(t, y, perm, lam), z),
    }
    kind = "inplace_backward" if inplace else "fresh gradient"
    kept = {k: f for k, f in floors.items() if f is not None}
    return compare(f"cross-entropy {kind} {dtype} {shape}", rivals, kept, budget_s)


def main(
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16),
    cases=CASES,
    budget_s: float = 2.0,
) -> list[dict]:
    rows = []
    for dtype in dtypes:
        for case in cases:
            rows += [one(case, dtype, inplace, budget_s) for inplace in (True, False)]
            torch._dynamo.reset()
    save("cross_entropy", rows)
    return rows
