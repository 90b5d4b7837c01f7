"""timm's losses in one pass over the logits; :mod:`mmix_fast.integrations.timm` offers them.

Their targets may be a MixedTarget, as Mixup(..., soft_targets=False) returns it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import MixedTarget, mixed_binary_cross_entropy, mixed_cross_entropy
from ..functional.mixed_target import multi_hot
from ..tracing import readable
from ..validation import check_fraction, describe

# λ = 1 on the CPU: creating it takes as long as a small loss.
_OWN_ALONE = torch.ones((), dtype=torch.float32, device="cpu")


def _one(x: Tensor) -> float | Tensor:
    """λ = 1, for targets that are mixed already."""
    return _OWN_ALONE if x.is_cpu and readable(x) else 1.0


def _broadcast(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    try:
        if target.is_floating_point() or target.ndim == x.ndim:  # not C labels (C,)
            x, target = torch.broadcast_tensors(x, target)
            return x, target
    except RuntimeError:
        pass
    raise ValueError(
        f"target must hold probabilities of shape {tuple(x.shape)}, got {describe(target)}; labels "
        "belong to mmix_fast.mixed_cross_entropy or nn.CrossEntropyLoss"
    )


class SoftTargetCrossEntropy(nn.Module):
    """timm.loss.SoftTargetCrossEntropy: ``mean(sum(-target * log_softmax(x)))``, in one pass.

    x is ``(B, ..., C)``. The target has x's shape or broadcasts to it, in any dtype; its
    probabilities need not sum to 1. Labels ``(B,)`` raise ValueError. The loss is float32 for
    half-precision x, else of x's dtype. A probability of 0 at a logit of -inf contributes 0
    (in timm it gives NaN).

    With a MixedTarget x is ``(B, C)``, and nothing else of its size is read. Labels of -100 then do
    not count in the mean; as dense targets they are rows of zeros, which do.

    Raises:
        ValueError: labels, or a target that does not broadcast to x's shape.

    Equivalent PyTorch: ``(-target * F.log_softmax(x, -1)).sum(-1).mean()``.
    Source: timm/loss/cross_entropy.py.

    >>> loss = SoftTargetCrossEntropy()(model(x), target)
    """

    def forward(self, x: Tensor, target: Tensor | MixedTarget) -> Tensor:
        if isinstance(target, MixedTarget):
            return mixed_cross_entropy(x, target)
        if target.shape != x.shape:
            x, target = _broadcast(x, target)
        if not target.is_floating_point():
            target = target.to(x.dtype)
        if x.ndim != 2:  # the mean is over all rows; not for 2-D: a view costs time in backward too
            x, target = x.reshape(-1, x.shape[-1]), target.reshape(-1, x.shape[-1])
        return mixed_cross_entropy(x, target, None, _one(x), target_b=target)


class BinaryCrossEntropy(nn.Module):
    """timm.loss.BinaryCrossEntropy in one pass: no one-hot, smoothed or binary targets in memory.

    Args:
        smoothing: of labels, in [0, 1): towards 1/C; of dense targets only with ``smooth_dense``.
        target_threshold: in [0, 1]; soft targets above it become 1, the others 0.
        weight, pos_weight: a number for each class, ``(C,)``, or one for all; buffers, as in timm.
        reduction: "mean" | "sum" | "none".
        sum_classes: the mean over rows of the sum over classes, whatever ``reduction``.
        smooth_dense: smooth dense targets too, towards 0.5.

    x is ``(B, C)``, and the target is labels ``(B,)`` or ``(B, 1)`` of any dtype, a MixedTarget,
    or dense of x's shape in any dtype; with dense targets x may have any shape ``(..., C)``. As in
    timm, mixed targets are not smoothed again without ``smooth_dense``. The loss is float32 for
    half-precision x, else of x's dtype.

    Raises:
        ValueError: a bad option, target or shape of weights.
        IndexError: a label out of range, -100 too.

    Equivalent code, and source: timm/loss/binary_cross_entropy.py.

    >>> loss = BinaryCrossEntropy(smoothing=0.1)(model(x), y)
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        smoothing: float = 0.1,
        target_threshold: float | None = None,
        weight: Tensor | None = None,
        reduction: str = "mean",
        sum_classes: bool = False,
        pos_weight: Tensor | float | None = None,
        smooth_dense: bool = False,
    ) -> None:
        super().__init__()
        if not check_fraction("smoothing", smoothing) < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
        if target_threshold is not None:
            check_fraction("target_threshold", target_threshold)
        if pos_weight is not None and not isinstance(pos_weight, Tensor):
            pos_weight = torch.tensor(pos_weight)
        self.smoothing, self.smooth_dense = smoothing, smooth_dense
        self.target_threshold, self.sum_classes = target_threshold, sum_classes
        self.reduction = "none" if sum_classes else reduction  # as timm shows it
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, x: Tensor, target: Tensor | MixedTarget) -> Tensor:
        if isinstance(target, MixedTarget):
            if not (self.smooth_dense and self.smoothing):
                return self._loss(x, target)
            target = target.soft()
        if target.shape != x.shape:
            return self._loss(x, _labels(x, target), self.smoothing)
        target = multi_hot(target)
        smoothing = self.smoothing if self.smooth_dense else 0.0
        if x.ndim == 2:  # a view costs time in backward too
            return self._loss(x, target, smoothing)
        loss = self._loss(x.reshape(-1, x.shape[-1]), target.reshape(-1, x.shape[-1]), smoothing)
        return loss if loss.ndim == 0 else loss.reshape(x.shape)

    def _loss(self, x: Tensor, target: Tensor | MixedTarget, smoothing: float = 0.0) -> Tensor:
        target_b = None if isinstance(target, MixedTarget) else target
        return mixed_binary_cross_entropy(
            x,
            target,
            lam=None if target_b is None else _one(x),
            target_b=target_b,
            weight=_per_class("weight", self.weight, x),
            pos_weight=_per_class("pos_weight", self.pos_weight, x),
            reduction="batchmean" if self.sum_classes else self.reduction,
            label_smoothing=smoothing,
            target_threshold=self.target_threshold,
        )


def _per_class(name: str, weight: Tensor | None, x: Tensor) -> Tensor | None:
    """A weight of timm's loss, which broadcasts, as ``(C,)`` in a dtype that the op takes."""
    if weight is None:
        return None
    classes = x.shape[-1]
    if weight.shape not in ((), (1,), (classes,), (1, classes)):
        raise ValueError(
            f"{name} must be one number or have shape ({classes},), got {describe(weight)}"
        )
    if weight.dtype not in (x.dtype, torch.float32):
        weight = weight.to(torch.promote_types(x.dtype, torch.float32))
    return weight.reshape(-1).expand(classes)


def _labels(x: Tensor, target: Tensor) -> Tensor:
    if x.ndim != 2 or target.numel() != x.shape[0]:
        raise ValueError(
            f"target must be dense of shape {tuple(x.shape)}, or hold one label for each row of x "
            f"(B, C), got {describe(target)}"
        )
    return target.long().reshape(-1)
