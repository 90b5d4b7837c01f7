"""torchvision's v2 ``MixUp`` and ``CutMix`` on mmix_fast's ops, with torchvision's draws.

>>> from mmix_fast.integrations.torchvision import CutMix, MixUp  # instead of v2's
>>> mix = v2.RandomChoice([MixUp(num_classes=1000), CutMix(num_classes=1000)])
>>> images, targets = mix(images, labels)

All else is as in v2: ``labels_getter``, nested samples, the inputs that raise (PIL images, boxes,
masks), and the draws from torch's default generator. Labels are indices ``(B,)`` of any integer
dtype (v2: int64 only; -100 gives a row of zeros) or dense ``(B, C)``: floating targets keep their
dtype, integer ones become float32. Images are rounded once.

``soft_targets=False`` returns a :class:`mmix_fast.MixedTarget` in place of soft targets: the labels
as they came, their pairing and λ. Nothing of size ``(B, C)`` is built, and a bad label raises in
the loss.

>>> images, target = MixUp(num_classes=1000, soft_targets=False)(images, labels)
>>> loss = mmix_fast.mixed_cross_entropy(model(images), target)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2._utils import query_size

from .. import MixedTarget, cutmix_, mix
from ..validation import describe


class _Fused:
    """Overrides v2's transform(): mixes labels and images, and returns anything else unchanged."""

    num_classes: int | None

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        num_classes: int | None = None,
        labels_getter: Callable[[Any], Any] | str | None = "default",
        soft_targets: bool = True,
    ) -> None:
        options = {"alpha": alpha, "num_classes": num_classes, "labels_getter": labels_getter}
        super().__init__(**options)  # v2's, which comes next
        self.soft_targets = soft_targets

    def _pair(self, images: Tensor, perm: Tensor, params: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def _weight(self, params: dict[str, Any]) -> float:
        raise NotImplementedError

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        is_label = inpt is params["labels"]
        image = isinstance(inpt, tv_tensors.Image | tv_tensors.Video)
        pure = isinstance(inpt, Tensor) and not isinstance(inpt, tv_tensors.TVTensor)
        if not (is_label or image or pure):
            return inpt
        device = inpt.device
        if device not in params:  # usually the same for images and labels
            params[device] = torch.arange(params["batch_size"], device=device).roll(1)
        perm = params[device]
        if is_label:
            return self._mix_labels(inpt, perm, self._weight(params))
        self._check_image_or_video(inpt, batch_size=params["batch_size"])  # type: ignore[attr-defined]
        out = self._pair(inpt.as_subclass(Tensor), perm, params)
        return tv_tensors.wrap(out, like=inpt) if image else out

    def _mix_labels(self, labels: Tensor, perm: Tensor, lam: float) -> Tensor | MixedTarget:
        if labels.ndim == 1:
            mixed = MixedTarget(labels, perm, lam, num_classes=self.num_classes)
        elif labels.is_floating_point():
            classes = labels.shape[1]
            mixed = MixedTarget(labels, perm, lam, num_classes=classes, dtype=labels.dtype)
        else:
            mixed = MixedTarget(labels, perm, lam, num_classes=labels.shape[1], multi_label=True)
        return mixed.soft() if self.soft_targets else mixed


class MixUp(_Fused, v2.MixUp):
    """Drop-in for torchvision.transforms.v2.MixUp, with its draws; one pass over the images.

    Args:
        alpha, num_classes, labels_getter: as in v2.
        soft_targets: False returns a :class:`mmix_fast.MixedTarget` in place of soft targets.

    Raises:
        TypeError: images that are not floating (in v2 RuntimeError).
        ValueError: what v2 raises it for.

    Equivalent code, and source: torchvision/transforms/v2/_augment.py.

    >>> images, targets = MixUp(alpha=0.2, num_classes=1000)(images, labels)
    """

    def _pair(self, images: Tensor, perm: Tensor, params: dict[str, Any]) -> Tensor:
        if not images.is_floating_point():
            raise TypeError(
                f"MixUp needs floating images, got {describe(images)}; put "
                "v2.ToDtype(torch.float32, scale=True) before it, or use CutMix, which takes "
                "images of any dtype"
            )
        return mix(images, perm, params["lam"])

    def _weight(self, params: dict[str, Any]) -> float:
        return params["lam"]


class CutMix(_Fused, v2.CutMix):
    """Drop-in for torchvision.transforms.v2.CutMix, with its draws; pastes into a copy.

    The images may have any dtype, such as uint8 before ``v2.ToDtype``.

    Args:
        alpha, num_classes, labels_getter: as in v2.
        soft_targets: False returns a :class:`mmix_fast.MixedTarget` in place of soft targets.

    Raises:
        ValueError: what v2 raises it for.

    As in v2, it takes no masks. For segmentation, paste images and masks, which may have any
    integer dtype, with one box. Each pixel then has the label of the image it comes from, ignored
    ones too, so that the loss is the plain one:

    >>> perm, box = torch.randperm(len(images)), (top, bottom, left, right)
    >>> images, masks = (mmix_fast.cutmix_(t, perm, box)[0] for t in (images, masks))
    >>> loss = F.cross_entropy(model(images / 255), masks.long(), ignore_index=255)

    Equivalent code, and source: torchvision/transforms/v2/_augment.py.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """v2's draws in v2's order; computes the box in Python, where v2 calls 14 ops."""
        lam = float(self._dist.sample(()))
        height, width = query_size(flat_inputs)
        x, y = int(torch.randint(width, size=(1,))), int(torch.randint(height, size=(1,)))
        half = 0.5 * math.sqrt(1.0 - lam)
        w, h = int(half * width), int(half * height)
        left, right = max(x - w, 0), min(x + w, width)
        top, bottom = max(y - h, 0), min(y + h, height)
        area = (right - left) * (bottom - top)
        return {
            "box": (left, top, right, bottom),
            "lam_adjusted": 1.0 - area / (width * height),
        }

    def _pair(self, images: Tensor, perm: Tensor, params: dict[str, Any]) -> Tensor:
        left, top, right, bottom = params["box"]
        return cutmix_(images.clone(), perm, (top, bottom, left, right))[0]

    def _weight(self, params: dict[str, Any]) -> float:
        return params["lam_adjusted"]
