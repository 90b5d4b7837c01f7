"""Draws λ and the pairing on the device, without making the host wait."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from .accuracy import mixed_accuracy
from .dispatch import select_draw
from .tracing import beyond_kernels
from .validation import check_index, check_real, describe

PAIRINGS = ("random", "flip", "roll", "derangement")


@dataclass(frozen=True, eq=False)
class Mix:
    """One draw: ``perm`` int64 ``(B,)`` and ``lam`` float32 0-dim or ``(B,)``.

    >>> perm, lam = mix = sample_mix(8, alpha=2.0)
    >>> loss = mix.cross_entropy(model(mix.mix(x)), y)
    """

    perm: Tensor
    lam: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        yield self.perm
        yield self.lam

    @staticmethod
    def identity(batch_size: int, device: torch.device | str | None = None) -> Mix:
        """The draw that mixes nothing: λ = 1, every sample its own partner.

        Args:
            batch_size: B >= 0.
            device: of the result; default: torch's.
        """
        perm = torch.arange(_batch_size(batch_size), device=device)
        return Mix(perm, torch.ones((), dtype=torch.float32, device=device))

    @property
    def inverse(self) -> Tensor:
        """The inverse permutation, for which ``inverse[perm[i]] == i``."""
        rows = torch.arange(self.perm.shape[0], device=self.perm.device)
        return torch.empty_like(self.perm).scatter_(0, self.perm, rows)

    def to(self, device: torch.device) -> Mix:
        """This draw on ``device``; self if it is already there. CPU to CUDA does not block."""
        if self.perm.device == device and self.lam.device == device:
            return self
        return Mix(_to(self.perm, device), _to(self.lam, device))

    def mix(self, x: Tensor, *, other: Tensor | None = None, dim: int = 0) -> Tensor:
        """:func:`mmix_fast.mix` with this draw."""
        return functional.mix(x, self.perm, self.lam, other=other, dim=dim)

    def mix_(self, x: Tensor, *, other: Tensor | None = None, dim: int = 0) -> Tensor:
        """:func:`mmix_fast.mix_` with this draw."""
        return functional.mix_(x, self.perm, self.lam, other=other, dim=dim)

    def targets(self, target: Tensor, **options: Any) -> Tensor:
        """:func:`mmix_fast.mix_targets` of this draw."""
        return functional.mix_targets(target, self.perm, self.lam, **options)

    def cross_entropy(self, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        """:func:`mmix_fast.mixed_cross_entropy` of this draw."""
        return functional.mixed_cross_entropy(logits, target, self.perm, self.lam, **options)

    def binary_cross_entropy(self, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        """:func:`mmix_fast.mixed_binary_cross_entropy` of this draw."""
        return functional.mixed_binary_cross_entropy(logits, target, self.perm, self.lam, **options)

    def linear_loss(
        self, features: Tensor, head: nn.Linear, target: Tensor, **options: Any
    ) -> Tensor:
        """``self.cross_entropy(head(features), target)`` without all of the logits.

        :func:`mmix_fast.mixed_linear_cross_entropy` of this draw and of the head's weight and bias,
        which may be DTensors. ``features`` are ``(B, D)``. ``head`` is not called: its hooks do not
        run.
        """
        if not isinstance(head, nn.Linear):
            raise TypeError(f"head must be an nn.Linear, got {describe(head)}")
        return functional.mixed_linear_cross_entropy(
            features,
            head.weight,
            target,
            self.perm,
            self.lam,
            linear_bias=head.bias,
            **options,
        )

    def accuracy(
        self, logits: Tensor, target: Tensor | functional.MixedTarget, topk: int = 1
    ) -> Tensor:
        """λ-weighted fraction in [0, 1] of correct predictions, a 0-dim float32 tensor.

        Args:
            logits: ``(B, C)`` or ``(B, C, d1, ...)``, floating.
            target: integer labels ``(B, d1, ...)``, or probabilities of the logits' shape; their
                argmax is the label. A label of -100 never counts as correct. A
                :class:`mmix_fast.MixedTarget`, mixed already, counts with its own pairing and λ.
            topk: correct means that the label is among the ``topk`` largest logits;
                1 <= topk <= C.

        Raises:
            TypeError, ValueError, IndexError: as :func:`mmix_fast.mixed_cross_entropy`.

        Equivalent PyTorch: ``(lam*(best == y) + (1-lam)*(best == y[perm])).mean()`` with
        ``best = logits.argmax(1)``.

        >>> top1, top5 = mix.accuracy(logits, y), mix.accuracy(logits, y, topk=5)
        """
        if isinstance(target, functional.MixedTarget):
            return target.accuracy(logits, topk)
        return mixed_accuracy(logits, target, self.perm, self.lam, topk)


def sample_mix(
    batch_size: int,
    alpha: float,
    *,
    device: torch.device | str | None = None,
    per_sample: bool = False,
    pairing: str = "random",
    generator: torch.Generator | None = None,
) -> Mix:
    """Draw λ ~ Beta(alpha, alpha), float32 whatever torch's default dtype is, and a pairing.

    Args:
        batch_size: B >= 0.
        alpha: >= 0, accurate from 1e-3 to 1e3; 0 gives λ = 1. alpha and batch_size may be NumPy
            scalars.
        device: of the result; default: the generator's, else torch's default device. A CPU
            generator with a CUDA device draws on the CPU and copies without blocking.
        per_sample: one λ for each sample, ``(B,)``, instead of one for all, ``()``.
        pairing: "random"; "flip" (reversed); "roll" (``arange(B).roll(1)``, as in torchvision);
            "derangement" (a random single cycle: no sample is its own partner, except at B = 1).
        generator: the source of the draw; the same state gives the same draw, on the same
            device and backend.

    Raises:
        TypeError, ValueError: wrong type or value.
        RuntimeError: generator in a compiled graph.

    Equivalent PyTorch: ``torch.distributions.Beta(alpha, alpha).sample()``, ``torch.randperm(B)``.
    Source: Zhang et al., mixup, ICLR 2018, section 2.

    >>> perm, lam = sample_mix(4, alpha=2.0)
    """
    batch_size = _batch_size(batch_size)
    alpha = check_alpha(alpha)
    check_pairing(pairing)
    if generator is not None:
        if torch.compiler.is_compiling():
            raise RuntimeError("generator= cannot be used inside a compiled graph; pass None there")
        if not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator must be a torch.Generator or None, got {describe(generator)}"
            )
    if device is not None:
        wanted = torch.device(device)
    else:  # not get_default_device, which Dynamo cannot trace
        wanted = generator.device if generator is not None else torch.empty(0).device
    source = wanted if generator is None else generator.device
    if source.type != "cpu" and source.type != wanted.type:
        raise ValueError(f"generator must be on cpu or {wanted}, got {source}")
    return draw_mix(batch_size, alpha, source, per_sample, pairing, generator).to(wanted)


def draw_mix(
    batch_size: int,
    alpha: float | Tensor,
    device: torch.device,
    per_sample: bool,
    pairing: str,
    generator: torch.Generator | None = None,
) -> Mix:
    """:func:`sample_mix` with checked arguments; alpha may be a 0-dim float64 tensor."""
    backend = select_draw(device, beyond_kernels())
    if backend is not None:
        drawn = backend.ops.sample_mix(batch_size, alpha, device, per_sample, pairing, generator)
        return Mix(*drawn)
    lam = _draw_lam(batch_size if per_sample else 1, alpha, device, generator)
    perm = _draw_perm(batch_size, pairing, device, generator)
    return Mix(perm, lam if per_sample else lam.reshape(()))


def check_alpha(value: Any) -> float:
    alpha = check_real("alpha", value)
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha must be finite and at least 0, got {alpha}")
    return alpha


def check_pairing(pairing: Any) -> None:
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing must be one of {', '.join(PAIRINGS)}, got {pairing!r}")


def _batch_size(value: Any) -> int:
    size = check_index("batch_size", value)
    if size < 0:
        raise ValueError(f"batch_size must be at least 0, got {size}")
    return size


def _to(t: Tensor, device: torch.device) -> Tensor:
    if t.device.type == "cpu" and device.type == "cuda":
        return t.pin_memory().to(device, non_blocking=True)  # pageable memory would block
    return t.to(device)


def _draw_lam(
    count: int, alpha: float | Tensor, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    if not isinstance(alpha, Tensor) and alpha == 0:
        return torch.ones(count, dtype=torch.float32, device=device)
    # Beta = G1/(G1+G2), in log space since at tiny alpha both gammas underflow to 0. Gamma(alpha)
    # is Gamma(alpha+1) * U^(1/alpha), and -log U is exponential.
    # full(..., alpha + 1) would specialize the graph on alpha.
    if isinstance(alpha, Tensor) or torch.compiler.is_compiling():
        shape = torch.ones((2, count), dtype=torch.float64, device=device) + alpha
    else:
        shape = torch.full((2, count), alpha + 1, dtype=torch.float64, device=device)
    gamma = torch._standard_gamma(shape, generator=generator)
    exponential = torch.empty_like(shape).exponential_(generator=generator)
    log_gamma = gamma.log() - exponential / alpha
    lam = torch.sigmoid(log_gamma[0] - log_gamma[1]).float()
    return torch.where(alpha == 0, 1.0, lam) if isinstance(alpha, Tensor) else lam


def _draw_perm(
    batch: int, pairing: str, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    if pairing == "flip":
        return torch.arange(batch - 1, -1, -1, device=device)
    if pairing == "roll":
        return torch.arange(batch, device=device).roll(1)
    # Not randperm: inductor cannot index by a randperm of the same graph. Not rand(generator=...):
    # it does not accept a symbolic size.
    key = torch.empty(batch, dtype=torch.float64, device=device).uniform_(generator=generator)
    order = key.argsort()
    if pairing == "random":
        return order
    return torch.empty_like(order).scatter_(0, order, order.roll(1))
