"""timm's ``Mixup`` and ``SoftTargetCrossEntropy`` on mmix_fast's ops; timm itself is not needed.

>>> from mmix_fast.integrations.timm import Mixup, SoftTargetCrossEntropy  # instead of timm's
>>> mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=1000)
>>> loss = SoftTargetCrossEntropy()(model(x), target)  # after x, target = mixup(x, target)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import cutmix_, mix_, mix_targets, mixed_cross_entropy
from ..validation import check_fraction

MODES = ("batch", "pair", "elem")


class Mixup:
    """timm.data.Mixup: the constructor, the call, and (from NumPy's global state) the draws of it.

    Differences: an odd batch is allowed (the middle sample keeps to itself); "pair" and "elem" mix
    in one launch instead of one for each sample; bad arguments raise ValueError.

    Args:
        mixup_alpha, cutmix_alpha: λ ~ Beta(alpha, alpha); 0 switches the kind off.
        cutmix_minmax: least and greatest share of the box in each direction, instead of λ's.
        prob: of mixing a batch (a sample, in "pair" and "elem").
        switch_prob: of CutMix where both are on.
        mode: "batch" one draw; "pair" one for each pair (i, B-1-i); "elem" one for each sample.
        correct_lam: λ from the area of the box as clipped at the edge.
        label_smoothing, num_classes: of the soft targets.
        multi_label: targets are dense ``(B, num_classes)``, smoothed towards 0.5.

    A call takes x ``(B, C, H, W)``, overwritten, and int64 labels ``(B,)``; it returns x and soft
    targets ``(B, num_classes)`` (float32).

    Equivalent code, and source: timm/data/mixup.py.
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
        self.mixup_enabled = True  # timm's training loop switches it off

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        perm = torch.arange(len(x), device=x.device).flip(0)
        lam = self._mix_batch(x, perm) if self.mode == "batch" else self._mix_samples(x, perm)
        smoothing = self.label_smoothing
        if self.multi_label:
            target, smoothing = target.float() * (1 - smoothing) + 0.5 * smoothing, 0.0
        soft = mix_targets(
            target, perm, lam, num_classes=self.num_classes, label_smoothing=smoothing
        )
        return x, soft

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
            mix_(x, perm, lam)
            return lam
        box, lam = self._box(x, lam)
        cutmix_(x, perm, box)
        return lam

    def _mix_samples(self, x: Tensor, perm: Tensor) -> Tensor:
        batch, (height, width) = len(x), x.shape[-2:]
        draws = batch // 2 if self.mode == "pair" else batch
        labels, cutmix = self._draw(draws)
        inside = labels.copy()  # λ inside the box: 0 pastes
        boxes = np.tile(np.array([0, height, 0, width]), (draws, 1))
        for i in np.flatnonzero(labels != 1):
            if cutmix[i]:
                boxes[i], labels[i] = self._box(x, labels[i])
                inside[i] = 0
        if self.mode == "pair":
            middle = np.ones(batch % 2)  # of an odd batch: λ = 1, whatever its box
            labels, inside = (np.concatenate((v, middle, v[::-1])) for v in (labels, inside))
            whole = np.tile(np.array([0, height, 0, width]), (batch % 2, 1))
            boxes = np.concatenate((boxes, whole, boxes[::-1]))

        def on_device(values: Any, dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(x.device, non_blocking=True)

        if cutmix.any():
            box = on_device(boxes, torch.int64)
            cutmix_(x, perm, box, lam=on_device(inside, torch.float32))
        else:
            mix_(x, perm, on_device(inside, torch.float32))
        return on_device(labels, torch.float32)

    def _draw(self, count: int) -> tuple[Any, Any]:
        """λ and whether it is CutMix, of each draw; timm's calls of NumPy in timm's order."""
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
        """(top, bottom, left, right) and λ by its area."""
        height, width = x.shape[-2:]
        if self.cutmix_minmax is not None:
            low, high = self.cutmix_minmax
            h = np.random.randint(int(height * low), int(height * high))
            w = np.random.randint(int(width * low), int(width * high))
            top, left = np.random.randint(0, height - h + 1), np.random.randint(0, width - w + 1)
            edges = top, top + h, left, left + w
        else:
            ratio = np.sqrt(1 - lam)
            h, w = int(height * ratio), int(width * ratio)
            y, column = np.random.randint(0, height), np.random.randint(0, width)
            edges = y - h // 2, y + (h + 1) // 2, column - w // 2, column + (w + 1) // 2
            edges = tuple(np.clip(edges, 0, (height, height, width, width)))
        box = tuple(int(edge) for edge in edges)
        if self.correct_lam or self.cutmix_minmax is not None:
            lam = 1 - (box[1] - box[0]) * (box[3] - box[2]) / (height * width)
        return box, lam


class SoftTargetCrossEntropy(nn.Module):
    """timm.loss.SoftTargetCrossEntropy: ``mean(sum(-target * log_softmax(x)))``, in one pass.

    x and target ``(B, ..., C)``; the target's probabilities may sum to anything.
    """

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        x, target = x.movedim(-1, 1), target.movedim(-1, 1)
        return mixed_cross_entropy(x, target, torch.arange(len(x), device=x.device), 1.0)
