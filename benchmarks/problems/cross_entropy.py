"""The mixed loss with its gradient, against F.cross_entropy and the kernels of other libraries."""

from __future__ import annotations

from functools import lru_cache, partial
from importlib.util import find_spec

import torch
from torch import Tensor

import mmix_fast

from ..problem import OURS, Goal, Implementation, Maker, Problem, compiled, makers_for
from .common import (
    SMALL,
    Loss,
    expected_gradient,
    gradient,
    make_inputs,
    small_call,
    soft_targets,
    tolerances,
    two_terms,
)

# shape -> least speedup over (eager, compiled), for inplace_backward and for a fresh gradient
GOALS: dict[tuple[int, ...], tuple[tuple[float, ...], tuple[float, ...]]] = {
    (512, 21841): ((20.0, 5.0), (5.0, 1.3)),
    (1024, 32000): ((20.0, 5.0), (5.0, 1.3)),
    (256, 1000): ((4.0,), (4.0,)),
    (128, 100): ((4.0,), (4.0,)),
    (128, 10): ((2.0,), (2.0,)),
}
SHAPES = {
    "cpu": tuple(GOALS),
    "cuda": ((16384, 10), (4096, 1000), (2048, 21841), (4096, 32000), (1024, 128256)),
}
QUICK_SHAPES = ((512, 21841), (256, 1000))


def liger(z: Tensor, y: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_cross_entropy as loss

    # Its forward overwrites the logits with the gradient, so each term needs a copy.
    return lam * loss(z.clone(), y) + (1 - lam) * loss(z.clone(), y[perm])


def quack(z: Tensor, y: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    from quack.cross_entropy import cross_entropy as loss

    return lam * loss(z, y) + (1 - lam) * loss(z, y[perm])


# name -> (its package, the two-term loss with its kernel). Imported when called: a package that is
# there and cannot be imported must not keep the others from being measured.
LIBRARIES = {"Liger-Kernel": ("liger_kernel", liger), "quack": ("quack", quack)}


def others() -> dict[str, Loss]:
    """Of the GPU libraries that are installed."""
    return {n: loss for n, (package, loss) in LIBRARIES.items() if find_spec(package)}


@lru_cache(maxsize=1)
def compiled_for(shape: tuple[int, ...], dtype: torch.dtype) -> Loss:
    """Compiled once for the two problems of a shape, which are made one after the other."""
    return compiled(two_terms)


def loss(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, inplace: bool, compiler=None
) -> Problem:
    """Loss and gradient.

    In place, the gradient of a call becomes the logits of the next one: other values, equal work.
    """
    z, *labels = make_inputs(shape, dtype, device)
    fast = compiler(two_terms) if compiler else compiled_for(shape, dtype)

    def fused(z: Tensor, *labels: Tensor) -> Tensor:
        return mmix_fast.mixed_cross_entropy(z, *labels, inplace_backward=inplace)

    def fresh() -> Tensor:
        return z.clone().requires_grad_()

    def implementation(of: Loss, compiled: bool = False) -> Implementation:
        return Implementation(gradient(of, *labels), expected, *tolerances(z), compiled=compiled)

    expected = expected_gradient(two_terms, z, torch.float32, *labels)
    implementations = {
        OURS: implementation(fused),
        "two terms": implementation(two_terms),
        "soft targets": implementation(soft_targets),
        "compiled": implementation(fast, compiled=inplace),
    }
    if torch.device(device).type == "cuda":
        implementations |= {name: implementation(op) for name, op in others().items()}
    least = GOALS.get(shape, ((), ()))[0 if inplace else 1]
    goals = tuple(
        Goal(implementation, 1 / ratio)
        for implementation, ratio in zip(("two terms", "compiled"), least)  # noqa: B905
    )
    op = f"cross-entropy {'in place' if inplace else 'fresh gradient'}"
    return Problem(op, shape, dtype, fresh, implementations, 2 * z.nbytes, goals)


def small(dtype: torch.dtype, device: str) -> Problem:
    z, *labels = make_inputs(SMALL, dtype, device)
    expected = two_terms(z.float(), *labels)
    name = "mixed_cross_entropy"
    ours, eager = (
        lambda z, op=op: op(z, *labels) for op in (mmix_fast.mixed_cross_entropy, two_terms)
    )
    return small_call(name, z, labels[-1], ours, eager, expected)


def makers(
    shapes: tuple[tuple[int, ...], ...] | None,
    dtypes: tuple[torch.dtype, ...],
    device: str,
    quick: bool,
) -> list[Maker]:
    default = QUICK_SHAPES if quick else SHAPES[torch.device(device).type]
    kinds = [partial(loss, inplace=inplace) for inplace in (True, False)]
    return makers_for(shapes, default, dtypes, device, kinds, (small,))
