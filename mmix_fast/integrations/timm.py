"""timm's ``Mixup`` and its losses on mmix_fast's ops; timm itself is not needed.

>>> from mmix_fast.integrations.timm import Mixup, SoftTargetCrossEntropy  # instead of timm's
>>> mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=1000)
>>> loss = SoftTargetCrossEntropy()(model(x), target)  # after x, target = mixup(x, target)

``Mixup(..., soft_targets=False)`` returns a :class:`mmix_fast.MixedTarget` in place of soft
targets, and both losses take it: nothing of size ``(B, num_classes)`` is written and read back.

``FastCollateMixup`` and ``NaFlexMixup`` have no drop-in here: keep timm's. By default (prefetcher
on) timm's train.py mixes with ``FastCollateMixup`` and never calls ``Mixup``: run it with
``--no-prefetcher`` to mix on the device with this ``Mixup``. ``FastCollateMixup`` mixes uint8
images in the loader's workers; these ops are no faster.
``NaFlexMixup`` mixes images of different sizes, which are no batch. The loss here accepts the
targets of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import MixedTarget, cutmix_, mix_
from ..validation import check_fraction, describe
from .timm_losses import BinaryCrossEntropy as BinaryCrossEntropy
from .timm_losses import SoftTargetCrossEntropy as SoftTargetCrossEntropy

MODES = ("batch", "pair", "elem")
NOT_OFFERED = ("FastCollateMixup", "NaFlexMixup")


def __getattr__(name: str) -> Any:
    if name in NOT_OFFERED:  # "from ... import" hides an AttributeError's text
        raise ImportError(
            f"mmix_fast has no {name}: keep timm.data's, or let Mixup mix on the device with "
            "train.py's --no-prefetcher"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Mixup:
    """Drop-in for timm.data.Mixup: same constructor, call and draws (from NumPy's global state).

    Differences: an odd batch is allowed (the middle sample is its own partner); "pair" and "elem"
    mix in one launch instead of one per sample; bad arguments raise ValueError; the box of CutMix
    spans the last two dimensions, also of videos ``(B, C, T, H, W)``; a label of -100 gives a row
    of zeros; in "pair" and "elem" the targets have the same λ as the images (timm rounds it to the
    images' dtype: for uint8 to 0).

    Args:
        mixup_alpha, cutmix_alpha: λ ~ Beta(alpha, alpha); 0 turns that kind off.
        cutmix_minmax: (min, max) share of the height and width that the box takes, instead of λ's.
        prob: the probability of mixing a batch (a pair in "pair", a sample in "elem").
        switch_prob: the probability of CutMix if both kinds are on.
        mode: "batch": one draw; "pair": one per pair (i, B-1-i); "elem": one per sample.
        correct_lam: compute λ from the area of the box after clipping at the edge.
        label_smoothing, num_classes: of the soft targets.
        multi_label: targets are dense ``(B, num_classes)``, smoothed towards 0.5.
        soft_targets: False returns a :class:`mmix_fast.MixedTarget` in place of soft targets. A bad
            label then raises in the loss.

    A call takes x ``(B, ..., H, W)``, which it overwrites, and B labels of any dtype and shape,
    such as ``(B,)`` or ``(B, 1)`` (fractions are truncated). It returns x and soft targets
    ``(B, num_classes)`` in float32; as in timm, in float64 for float64 images in "pair" and "elem".
    x is floating; integer images can be pasted (CutMix), but not blended (Mixup).

    Raises:
        ValueError: a bad option; a target without exactly B labels, or not dense with
            ``multi_label``.
        TypeError: integer images if Mixup is drawn.
        IndexError: a bad label.

    Equivalent code, and source: timm/data/mixup.py.

    >>> mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=1000)
    >>> x, target = mixup(x, y)
    """

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: Sequence[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        multi_label: bool = False,
        *,
        soft_targets: bool = True,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if cutmix_minmax is not None:
            if len(cutmix_minmax) != 2:
                raise ValueError(f"cutmix_minmax must be (least, greatest), got {cutmix_minmax!r}")
            cutmix_alpha = 1.0  # as in timm
        if not (mixup_alpha > 0 or cutmix_alpha > 0):
            raise ValueError("mixup_alpha, cutmix_alpha or cutmix_minmax must be given, got none")
        for name, value in (("prob", prob), ("switch_prob", switch_prob)):
            check_fraction(name, value)
        self.mixup_alpha, self.cutmix_alpha = mixup_alpha, cutmix_alpha
        self.cutmix_minmax = cutmix_minmax
        self.mix_prob, self.switch_prob, self.mode = prob, switch_prob, mode
        self.correct_lam, self.label_smoothing = correct_lam, label_smoothing
        self.num_classes, self.multi_label = num_classes, multi_label
        self.soft_targets = soft_targets
        self.mixup_enabled = True  # timm's training loop switches it off

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Any]:
        target = self._check_target(target, len(x))
        perm = torch.arange(len(x) - 1, -1, -1, device=x.device)
        dtype = torch.float32
        lam: float | Tensor
        if self.mode == "batch":
            lam = self._mix_batch(x, perm)
        else:
            lam = self._mix_samples(x, perm)
            if x.dtype == torch.float64:
                dtype = x.dtype
        if target.device != x.device:  # labels that stay on the CPU: this copy must block
            perm = perm.to(target.device)
            lam = lam.to(target.device) if isinstance(lam, Tensor) else lam
        mixed = MixedTarget(
            target,
            perm,
            lam,
            num_classes=self.num_classes,
            label_smoothing=self.label_smoothing,
            multi_label=self.multi_label,
            dtype=dtype,
        )
        return x, mixed.soft() if self.soft_targets else mixed

    def _check_target(self, target: Tensor, batch: int) -> Tensor:
        """Checked before any draw. Returns dense targets unchanged, or int64 labels ``(B,)``."""
        if self.multi_label:
            if target.shape != (batch, self.num_classes):
                raise ValueError(
                    f"target must be dense of shape ({batch}, {self.num_classes}) with "
                    f"multi_label=True, got {describe(target)}"
                )
            return target
        if target.numel() != batch:
            raise ValueError(
                f"target must hold {batch} labels, one for each sample of x, got "
                f"{describe(target)}; dense targets need multi_label=True"
            )
        return target.long().reshape(batch)

    def _mix_batch(self, x: Tensor, perm: Tensor) -> float:
        if not self.mixup_enabled or np.random.rand() >= self.mix_prob:
            return 1.0
        both = self.mixup_alpha > 0 and self.cutmix_alpha > 0
        cutmix = np.random.rand() < self.switch_prob if both else self.cutmix_alpha > 0
        alpha = self.cutmix_alpha if cutmix else self.mixup_alpha
        lam = float(np.random.beta(alpha, alpha))
        if lam == 1:
            return lam
        if not cutmix:
            _check_blendable(x)
            mix_(x, perm, lam)
            return lam
        box, lam = self._box(x, lam)
        cutmix_(x, perm, box)
        return lam

    def _mix_samples(self, x: Tensor, perm: Tensor) -> Tensor:
        """Mixes each sample, or pair, with its own draw. Returns λ for the labels, ``(B,)``."""
        draws = len(x) // 2 if self.mode == "pair" else len(x)
        labels, cutmix = self._draw(draws)
        pasted, blended = cutmix & (labels != 1), ~cutmix & (labels != 1)
        inside = np.where(blended, labels, 0)  # λ inside the box: 0 pastes
        boxes = np.zeros((draws, 4), dtype=np.int64)  # an empty box changes nothing
        for i in np.flatnonzero(pasted):
            boxes[i], labels[i] = self._box(x, labels[i])
        if pasted.any() and blended.any():
            boxes[blended] = 0, x.shape[-2], 0, x.shape[-1]
        if self.mode == "pair":
            middle = np.zeros(len(x) % 2)  # of an odd batch: the box is empty, λ = 1
            boxes = np.concatenate((boxes, np.zeros((len(x) % 2, 4)), boxes[::-1]))
            inside = np.concatenate((inside, middle, inside[::-1]))
            labels = np.concatenate((labels, 1 - middle, labels[::-1]))

        def on_device(values: Any, dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(x.device, non_blocking=True)

        weights = on_device(labels, torch.float32)
        if blended.any():
            _check_blendable(x)
        if not pasted.any():
            if blended.any():
                mix_(x, perm, weights)
        elif not blended.any():
            cutmix_(x, perm, on_device(boxes, torch.int64))
        else:
            cutmix_(x, perm, on_device(boxes, torch.int64), lam=on_device(inside, torch.float32))
        return weights

    def _draw(self, count: int) -> tuple[Any, Any]:
        """(λ, True for CutMix) of each draw; makes timm's NumPy calls in timm's order."""
        lam, cutmix = np.ones(count, dtype=np.float32), np.zeros(count, dtype=bool)
        if not self.mixup_enabled:
            return lam, cutmix

        def beta(alpha: float) -> Any:
            return np.random.beta(alpha, alpha, size=count)

        if self.mixup_alpha > 0 and self.cutmix_alpha > 0:
            cutmix = np.random.rand(count) < self.switch_prob
            drawn = np.where(cutmix, beta(self.cutmix_alpha), beta(self.mixup_alpha))
        else:
            cutmix[:] = self.cutmix_alpha > 0
            drawn = beta(self.mixup_alpha if self.mixup_alpha > 0 else self.cutmix_alpha)
        return np.where(
            np.random.rand(count) < self.mix_prob, drawn.astype(np.float32), lam
        ), cutmix

    def _box(self, x: Tensor, lam: float) -> tuple[tuple[int, ...], float]:
        """(top, bottom, left, right), and λ from its area if correct_lam or cutmix_minmax."""
        if x.ndim < 3:
            raise ValueError(f"x must have shape (B, ..., H, W) for CutMix, got {describe(x)}")
        height, width = x.shape[-2:]
        if self.cutmix_minmax is not None:
            low, high = self.cutmix_minmax
            h = np.random.randint(int(height * low), int(height * high))
            w = np.random.randint(int(width * low), int(width * high))
            top, left = np.random.randint(0, height - h + 1), np.random.randint(0, width - w + 1)
            bottom, right = top + h, left + w
        else:
            ratio = np.sqrt(1 - lam)
            h, w = int(height * ratio), int(width * ratio)
            y, column = np.random.randint(0, height), np.random.randint(0, width)
            top, bottom = max(y - h // 2, 0), min(y + (h + 1) // 2, height)
            left, right = max(column - w // 2, 0), min(column + (w + 1) // 2, width)
        if self.correct_lam or self.cutmix_minmax is not None:
            lam = 1 - (bottom - top) * (right - left) / (height * width)
        return (top, bottom, left, right), lam


def _check_blendable(x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(
            f"x must be floating to be blended by Mixup, got {describe(x)}; give x.float(), or "
            "paste alone: Mixup(mixup_alpha=0, cutmix_alpha=1)"
        )
