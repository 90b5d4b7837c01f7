"""The targets of a mixed batch as labels, pairing and λ, without a dense tensor of all classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..accuracy import mixed_accuracy
from ..validation import check_fraction, check_logits, check_tensor, describe
from .targets import mix_targets

# target, perm, lam, target_b, label_smoothing, as a loss takes them
LossTargets = tuple[Tensor, Tensor | None, float | Tensor, Tensor | None, float]


@dataclass(frozen=True, eq=False)
class MixedTarget:
    """The targets of a mixed batch, sparse: what :func:`mix_targets` makes a dense tensor of.

    The drop-ins for timm and torchvision return one if made with ``soft_targets=False``. These take
    one as their target: :func:`mixed_cross_entropy`, :meth:`mmix_fast.Mix.accuracy`, and the losses
    of ``mmix_fast.integrations.timm``. Nothing of size ``(B, C)`` is written or read back.

    It pickles, goes through a DataLoader with workers (mix in ``collate_fn``) and ``pin_memory``,
    and can be an argument of a compiled function. Creating it runs no op and checks nothing: a bad
    label, perm or λ raises where it is used, as the function that is called there says.

    Args:
        target: labels ``(B, d1, ...)`` of any integer dtype, or floating probabilities
            ``(B, C, d1, ...)``.
        perm, lam, target_b: as in :func:`mixed_cross_entropy`; exactly one of perm and target_b.
        num_classes: as many as the logits will have; :meth:`soft` needs it for labels.
        label_smoothing: in [0, 1]: moves each target towards 1/C.
        multi_label: target is ``(B, C, d1, ...)`` in any dtype, one value for each class, and
            smoothing moves each towards 1/2, as in timm.
        dtype: of :meth:`soft`.

    With labels of -100, the dense targets have rows of zeros, and timm's loss divides by the number
    of all rows. With sparse targets it divides as ``F.cross_entropy`` does, by the labels' count.

    >>> mixup = Mixup(num_classes=1000, soft_targets=False)  # of mmix_fast.integrations.timm
    >>> x, target = mixup(x, y)
    >>> loss = mixed_cross_entropy(model(x), target)
    """

    target: Tensor
    perm: Tensor | None
    lam: float | Tensor
    _: KW_ONLY
    target_b: Tensor | None = None
    num_classes: int | None = None
    label_smoothing: float = 0.0
    multi_label: bool = False
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        """The batch size."""
        return self.target.shape[0]

    def soft(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense targets ``(B, C, d1, ...)``, by :func:`mix_targets`."""
        target, perm, lam, target_b, smoothing = self.for_cross_entropy()
        return mix_targets(
            target,
            perm,
            lam,
            target_b=target_b,
            num_classes=self.num_classes,
            label_smoothing=smoothing,
            dtype=self.dtype if dtype is None else dtype,
        )

    def accuracy(self, logits: Tensor, topk: int = 1) -> Tensor:
        """λ-weighted fraction of correct predictions, as :meth:`mmix_fast.Mix.accuracy`."""
        self.check_classes(logits)
        target, perm, lam, target_b, _ = self.for_cross_entropy()
        return mixed_accuracy(logits, target, perm, lam, topk, target_b)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> MixedTarget:
        """This on ``device``; self if it is there. Copies from pinned memory do not block.

        ``non_blocking``: as in ``Tensor.to``, but a copy to the CPU always blocks.
        """
        device = torch.device(device)
        if all(t.device == device for t in self._tensors().values()):
            return self
        ahead = non_blocking and device.type != "cpu"
        return self._each(lambda t: t.to(device, non_blocking=ahead))

    def pin_memory(self) -> MixedTarget:
        """A copy in pinned memory; a DataLoader with ``pin_memory=True`` calls this."""
        return self._each(Tensor.pin_memory)

    def check_alone(
        self, logits: Tensor, perm: object, lam: object, target_b: object, label_smoothing: object
    ) -> None:
        """Raises ValueError if a loss of these logits was also given what this stands for."""
        others = {"perm": perm, "lam": lam, "target_b": target_b}
        others["label_smoothing"] = label_smoothing or None
        if given := [name for name, value in others.items() if value is not None]:
            raise ValueError(
                f"{', '.join(given)} must not be given with a MixedTarget, which has its own"
            )
        self.check_classes(logits)

    def check_classes(self, logits: Tensor) -> None:
        check_logits(logits)
        if self.num_classes is not None and logits.shape[1] != self.num_classes:
            raise ValueError(
                f"logits must have the {self.num_classes} classes of the MixedTarget, got "
                f"{describe(logits)}"
            )

    def for_cross_entropy(self) -> LossTargets:
        """The arguments of a loss that smooths dense targets towards 1/C."""
        if self.multi_label:  # in float32 whatever the dtype, as timm computes it
            return self._changed(lambda t: _smooth(t.float(), self.label_smoothing, 0.5), 0.0)
        return self.target, self.perm, self.lam, self.target_b, self.label_smoothing

    def for_binary_cross_entropy(self, classes: int) -> LossTargets:
        """The arguments of a loss that smooths dense targets towards 1/2."""
        eps = self.label_smoothing
        if self.multi_label:
            return self._changed(multi_hot, eps)
        if eps and isinstance(self.target, Tensor) and self.target.is_floating_point():
            return self._changed(lambda t: _smooth(t, eps, 1 / classes), 0.0)
        return self.target, self.perm, self.lam, self.target_b, eps

    def _changed(self, change: Callable[[Tensor], Tensor], smoothing: float) -> LossTargets:
        check_tensor(self.target, "target")
        if self.target_b is None:
            return change(self.target), self.perm, self.lam, None, smoothing
        check_tensor(self.target_b, "target_b")
        return change(self.target), self.perm, self.lam, change(self.target_b), smoothing

    def _tensors(self) -> dict[str, Tensor]:
        return {name: t for name, t in vars(self).items() if isinstance(t, Tensor)}

    def _each(self, move: Callable[[Tensor], Tensor]) -> MixedTarget:
        moved: dict[str, Any] = {name: move(t) for name, t in self._tensors().items()}
        return replace(self, **moved)


def _smooth(dense: Tensor, eps: float, towards: float) -> Tensor:
    eps = check_fraction("label_smoothing", eps)
    return dense * (1 - eps) + towards * eps if eps else dense


def multi_hot(dense: Tensor) -> Tensor:
    """In a dtype that mixed_binary_cross_entropy takes."""
    ready = dense.is_floating_point() or dense.dtype in (torch.bool, torch.uint8)
    return dense if ready else dense.float()
