"""A step of a linear head and its loss: time and memory, with all logits at once and in chunks.

Forward and backward to the features and to the weight, at the size of ImageNet-21k's head on a
batch of image tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from mmix_fast import mixed_cross_entropy, mixed_linear_cross_entropy

from ..problem import OURS, THREADS, Goal, Implementation, Maker, Op, Problem, with_threads
from ..runner import Effort
from .common import two_terms

Shape = tuple[int, ...]  # rows N, features D, classes C
# (features, weight) -> loss
HeadLoss = Callable[[Tensor, Tensor], Tensor]

SHAPE, QUICK_SHAPE = (4096, 768, 21841), (512, 256, 4096)
CHECKED = (300, 24, 500)  # several chunks of 128, and the last one smaller
CHUNKS = (128, 256, 384, 512, 1024)
# A step takes seconds, so that there are few rounds and no second attempt.
EFFORT = Effort(3, 0.0, attempts=1)
ALL_LOGITS = "all logits"  # the baseline of the time goal: our loss after F.linear
TIME_SHARE, MEMORY_SHARE = 1.1, 1.25
STEP, SWEEP = "linear head", "linear head by chunk_size"


def make_head(shape: Shape, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Features, weight, labels, permutation, λ."""
    rows, features, classes = shape
    x = torch.randn(rows, features, device=device).to(dtype)
    w = (torch.randn(classes, features, device=device) * features**-0.5).to(dtype)
    y = torch.randint(0, classes, (rows,), device=device)
    return x, w, y, torch.randperm(rows, device=device), torch.tensor(0.3, device=device)


def head_tolerances(dtype: torch.dtype, rows: int) -> tuple[float, float]:
    """Of loss and gradients. A label's entry of the gradient of the logits is near -1/rows, is
    rounded a few times; the products are summed in float32."""
    eps = torch.finfo(dtype).eps
    return max(3 * eps, 1e-4), (4 * eps + 32 * torch.finfo(torch.float32).eps) / rows


def step_of(loss: HeadLoss, w: Tensor) -> Op:
    """Forward and backward: the loss, and the gradients to features and weight."""
    w = w.detach().requires_grad_()

    def step(x: Tensor) -> tuple[Tensor, ...]:
        value = loss(x, w)
        return value.detach(), *torch.autograd.grad(value, (x, w))

    return step


def twice(of: Callable[..., Tensor], y: Tensor, perm: Tensor, lam: Tensor) -> HeadLoss:
    """A loss that takes no mixed labels: once for each label."""
    return lambda x, w: lam * of(x, w, y) + (1 - lam) * of(x, w, y[perm])


def liger(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(x, w, y)


def others(
    device: str, dtype: torch.dtype
) -> tuple[dict[str, Callable[..., Tensor]], dict[str, str]]:
    """The fused heads of others that run here, and why the rest does not."""
    found: dict[str, Callable[..., Tensor]] = {}
    skipped = {}
    if hasattr(F, "linear_cross_entropy"):
        found["torch twice"] = F.linear_cross_entropy
        if torch.device(device).type == "cpu" and dtype.itemsize == 2:
            skipped["torch chunked"] = "takes many seconds a step in 16 bits on a CPU"
        else:
            chunked = torch.nn.LinearCrossEntropyOptions()
            found["torch chunked twice"] = partial(F.linear_cross_entropy, options=chunked)
    else:
        skipped["torch"] = f"torch {torch.__version__} has no linear_cross_entropy"
    if torch.device(device).type != "cuda":
        skipped["Liger-Kernel"] = "its kernels are for GPUs"
    elif find_spec("liger_kernel") is None:
        skipped["Liger-Kernel"] = "no package liger_kernel"
    else:
        found["Liger-Kernel twice"] = liger
    return found, skipped


def losses(
    device: str, dtype: torch.dtype, some: bool, *labels: Tensor
) -> tuple[dict[str, HeadLoss], dict[str, str]]:
    """The implementations of a step. ``some``: without those that run twice."""
    found: dict[str, HeadLoss] = {
        OURS: lambda x, w: mixed_linear_cross_entropy(x, w, *labels),
        ALL_LOGITS: lambda x, w: mixed_cross_entropy(
            F.linear(x, w), *labels, inplace_backward=True
        ),
        "two terms": lambda x, w: two_terms(F.linear(x, w), *labels),
    }
    if some:
        return found, {}
    fused, skipped = others(device, dtype)
    return found | {name: twice(of, *labels) for name, of in fused.items()}, skipped


def by_chunks(
    device: str, dtype: torch.dtype, some: bool, *labels: Tensor
) -> tuple[dict[str, HeadLoss], dict[str, str]]:
    def chunked(size: int | None) -> HeadLoss:
        return lambda x, w: mixed_linear_cross_entropy(x, w, *labels, chunk_size=size or len(x))

    found: dict[str, HeadLoss] = {OURS: losses(device, dtype, True, *labels)[0][OURS]}
    found |= {str(size): chunked(size) for size in CHUNKS}
    return found | {"whole": chunked(None)}, {}


def problem(
    op: str,
    kind: Callable[..., tuple[dict[str, HeadLoss], dict[str, str]]],
    some: bool,
    shape: Shape,
    dtype: torch.dtype,
    device: str,
    checked: bool = False,
) -> Problem:
    """``kind``: gives the implementations. ``checked``: with the expected result, of float64."""
    x, w, *labels = make_head(shape, dtype, device)
    found, skipped = kind(device, dtype, some, *labels)
    expected, near = None, (0.0, 0.0)
    if checked:
        formula = step_of(lambda x, w: two_terms(F.linear(x, w), *labels), w.double())
        expected, near = formula(x.double().requires_grad_()), head_tolerances(dtype, len(x))
    implementations = {
        name: Implementation(step_of(loss, w), expected, *near) for name, loss in found.items()
    }
    return Problem(
        op,
        shape,
        dtype,
        lambda: x.clone().requires_grad_(),
        implementations,
        goals=(Goal(ALL_LOGITS, TIME_SHARE),) if kind is losses else (),
        cold=False,
        small=None if checked else problem(op, kind, some, CHECKED, dtype, device, True),
        slow=not checked,
        held=2 * (x.nbytes + w.nbytes),
        memory_goal=MEMORY_SHARE,
        notes={OURS: {"skipped": skipped}} if skipped else {},
    )


def makers(
    shapes: tuple[Shape, ...] | None, dtypes: tuple[torch.dtype, ...], device: str, quick: bool
) -> list[Maker]:
    """By one thread too in the first dtype, without what runs twice: that would take minutes."""
    found: list[Maker] = []
    for shape in shapes or ((QUICK_SHAPE if quick else SHAPE),):
        first = shape, dtypes[0], device
        every = [partial(problem, STEP, losses, False, shape, dtype, device) for dtype in dtypes]
        every.append(partial(problem, SWEEP, by_chunks, False, *first))
        if torch.device(device).type == "cpu":
            several = min(THREADS, os.cpu_count() or 1)
            every = [partial(with_threads, make, several) for make in every]
            if several > 1:
                few = partial(problem, STEP, losses, True, *first)
                every.insert(0, partial(with_threads, few, 1))
        found += every
    return found
