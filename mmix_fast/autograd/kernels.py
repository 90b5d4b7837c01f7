"""The ops as the kernels of one torch.ops namespace compute them, with gradients.

Each method takes the checked arguments of the function of the same name in reference/, and turns
them into the kernel's: λ becomes a tensor of the compute dtype, indices become contiguous.
sample_mix takes those of draw_mix in sampling.py, which has its plain PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..arithmetic import as_lam, compute_dtype
from ..layouts import overlaps
from ..ops import kernel
from ..tracing import autocast_dtype
from .linear_loss import LinearLossCall, linear_loss
from .loss import LossCall, mixed_loss
from .mix import MixBatchFn, mix, mix_inplace
from .mix_other import mix_other, mix_other_inplace

Lam = float | Tensor


@dataclass(frozen=True)
class Kernels:
    namespace: str

    def mix(
        self, x: Tensor, perm: Tensor | None, lam: Lam, *, other: Tensor | None = None, dim: int = 0
    ) -> Tensor:
        weight = as_lam(lam, compute_dtype(x.dtype), x.device)
        if other is not None:
            return mix_other(x, other, _contiguous(perm), weight, dim, self.namespace)
        assert perm is not None  # mmix_fast.functional raises otherwise
        return mix(x, perm.contiguous(), weight, dim, False, self.namespace)

    def mix_(
        self, x: Tensor, perm: Tensor | None, lam: Lam, *, other: Tensor | None = None, dim: int = 0
    ) -> Tensor:
        weight = as_lam(lam, compute_dtype(x.dtype), x.device)
        if other is not None:
            return mix_other_inplace(x, other, _contiguous(perm), weight, dim, self.namespace)
        assert perm is not None  # mmix_fast.functional raises otherwise
        return mix_inplace(x, perm.contiguous(), weight, dim, self.namespace)

    def cutmix_(self, x: Tensor, perm: Tensor, box: Tensor, lam: Tensor) -> Tensor:
        # lam is a tensor already, since the op returns one that is made from it.
        kernel(self.namespace, "cutmix_")(x, perm.contiguous(), box.contiguous(), lam)
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version(x)
        return x

    def mix_targets(
        self,
        target: Tensor,
        perm: Tensor | None,
        lam: Lam,
        *,
        target_b: Tensor | None = None,
        num_classes: int,
        label_smoothing: float,
        ignore_index: int,
        dtype: torch.dtype,
    ) -> Tensor:
        weight = as_lam(lam, compute_dtype(target.dtype, dtype), target.device)
        return kernel(self.namespace, "mix_targets")(
            target.contiguous(),
            _contiguous(perm),
            weight,
            num_classes,
            label_smoothing,
            ignore_index,
            dtype,
            _contiguous(target_b),
        )

    def mix_batch_(
        self,
        x: Tensor,
        target: Tensor,
        perm: Tensor,
        lam: Lam,
        *,
        num_classes: int,
        label_smoothing: float,
        ignore_index: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():  # MixBatchFn is for eager calls only
            soft = self.mix_targets(
                target,
                perm,
                lam,
                num_classes=num_classes,
                label_smoothing=label_smoothing,
                ignore_index=ignore_index,
                dtype=dtype,
            )
            return self.mix_(x, perm, lam), soft
        # The kernel rounds λ to the compute dtypes of x and of the targets, which may differ.
        weight = as_lam(lam, compute_dtype(x.dtype, target.dtype, dtype), x.device)
        targets = target.contiguous(), num_classes, label_smoothing, ignore_index, dtype
        return MixBatchFn.apply(x, perm.contiguous(), weight, targets, self.namespace)

    def sample_mix(
        self,
        batch_size: int,
        alpha: float | Tensor,
        device: torch.device,
        per_sample: bool,
        pairing: str,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        # One launch, which CUDA graphs know: each replay draws a new key. Two numbers of 31 bits,
        # since torch 2.11's inductor takes the bound for an int32.
        key = torch.randint(2**31 - 1, (2,), dtype=torch.int64, device=device, generator=generator)
        in_graph = None
        if isinstance(alpha, Tensor) or torch.compiler.is_compiling():
            # Not .to(device): CUDA graphs cannot capture a copy from pageable memory.
            in_graph = torch.ones((), dtype=torch.float64, device=device) * alpha
            alpha = 0.0
        return kernel(self.namespace, "sample_mix")(
            key, batch_size, per_sample, pairing, alpha, in_graph
        )

    def mixed_cross_entropy(
        self,
        logits: Tensor,
        target: Tensor,
        perm: Tensor | None,
        lam: Lam,
        *,
        target_b: Tensor | None,
        weight: Tensor | None,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
        z_loss: float,
        softcap: float | None,
        inplace_backward: bool,
    ) -> Tensor:
        coef = as_lam(lam, compute_dtype(logits.dtype), logits.device)
        targets = _as_kernels_read(target), _contiguous(perm), _as_kernels_read(target_b)
        tensors = (*targets, coef, _contiguous(weight), None)
        options = (ignore_index, reduction, label_smoothing, z_loss, softcap or 0.0, 0, 0)
        inplace = inplace_backward and _can_overwrite(logits)
        call = LossCall("cross_entropy", reduction, options, self.namespace, inplace)
        return mixed_loss(logits, tensors, call)

    def mixed_binary_cross_entropy(
        self,
        logits: Tensor,
        target: Tensor,
        perm: Tensor | None,
        lam: Lam,
        *,
        target_b: Tensor | None,
        weight: Tensor | None,
        pos_weight: Tensor | None,
        reduction: str,
        label_smoothing: float,
        target_threshold: float | None,
        inplace_backward: bool,
    ) -> Tensor:
        coef = as_lam(lam, compute_dtype(logits.dtype), logits.device)
        if target_b is not None and target_b.dtype != target.dtype:  # a rare copy
            both = torch.promote_types(target.dtype, target_b.dtype)
            target, target_b = target.to(both), target_b.to(both)
        targets = _as_kernels_read(target), _contiguous(perm), _as_kernels_read(target_b)
        tensors = (*targets, coef, _contiguous(weight), _contiguous(pos_weight))
        options = (reduction, label_smoothing, target_threshold)
        inplace = inplace_backward and _can_overwrite(logits)
        call = LossCall("binary_cross_entropy", reduction, options, self.namespace, inplace)
        return mixed_loss(logits, tensors, call)

    def mixed_linear_cross_entropy(
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        perm: Tensor | None,
        lam: Lam,
        *,
        linear_bias: Tensor | None,
        target_b: Tensor | None,
        weight: Tensor | None,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
        z_loss: float,
        softcap: float | None,
        chunk_size: int | None,
    ) -> Tensor:
        dtype = autocast_dtype(input)
        coef = as_lam(lam, compute_dtype(dtype), input.device)
        targets = _as_kernels_read(target), _contiguous(perm), _as_kernels_read(target_b)
        tensors = (*targets, coef, _contiguous(weight))
        options = ignore_index, reduction, label_smoothing, z_loss, softcap or 0.0
        call = LinearLossCall(self.namespace, dtype, chunk_size or 0, options)
        return linear_loss(input, linear_weight, linear_bias, tensors, call)


def _can_overwrite(logits: Tensor) -> bool:
    """In a compiled graph the compiler manages the buffers. Overlapping memory cannot be reused."""
    return not torch.compiler.is_compiling() and not overlaps(logits)


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _as_kernels_read(target: Tensor | None) -> Tensor | None:
    """Labels are contiguous. A bool tensor becomes uint8 and shares its memory."""
    if target is None or target.dtype == torch.int64:
        return _contiguous(target)
    return target.view(torch.uint8) if target.dtype == torch.bool else target
