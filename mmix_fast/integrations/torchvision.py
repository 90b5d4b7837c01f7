"""torchvision's v2 ``MixUp`` and ``CutMix`` on mmix_fast's ops, with torchvision's draws.

>>> from mmix_fast.integrations.torchvision import CutMix, MixUp  # instead of v2's
>>> images, targets = MixUp(alpha=0.2, num_classes=1000)(images, labels)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from .. import cutmix_, mix, mix_targets


class _Fused:
    """Overrides v2's transform(): the labels, then the images; anything else is handed back."""

    num_classes: int | None

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
        perm = torch.arange(params["batch_size"], device=inpt.device).roll(1)
        if is_label:
            labels = inpt if inpt.is_floating_point() or inpt.ndim == 1 else inpt.float()
            classes = self.num_classes if labels.ndim == 1 else labels.shape[1]
            return mix_targets(labels, perm, self._weight(params), num_classes=classes)
        self._check_image_or_video(inpt, batch_size=params["batch_size"])  # type: ignore[attr-defined]
        out = self._pair(inpt.as_subclass(Tensor), perm, params)
        return tv_tensors.wrap(out, like=inpt) if image else out


class MixUp(_Fused, v2.MixUp):
    """torchvision.transforms.v2.MixUp: constructor, call and draws of it; one pass over the images.

    Equivalent code, and source: torchvision/transforms/v2/_augment.py.
    """

    def _pair(self, images: Tensor, perm: Tensor, params: dict[str, Any]) -> Tensor:
        return mix(images, perm, params["lam"])

    def _weight(self, params: dict[str, Any]) -> float:
        return params["lam"]


class CutMix(_Fused, v2.CutMix):
    """torchvision.transforms.v2.CutMix: constructor, call and draws of it; the box in place.

    Equivalent code, and source: torchvision/transforms/v2/_augment.py.
    """

    def _pair(self, images: Tensor, perm: Tensor, params: dict[str, Any]) -> Tensor:
        left, top, right, bottom = params["box"]
        return cutmix_(images.clone(), perm, (top, bottom, left, right))[0]

    def _weight(self, params: dict[str, Any]) -> float:
        return params["lam_adjusted"]
