"""``mixup_data`` and ``mixup_criterion`` of facebookresearch/mixup-cifar10, for code that has them.

>>> x, y_a, y_b, lam = mixup_data(x, y, alpha=1.0)
>>> loss = mixup_criterion(criterion, model(x), y_a, y_b, lam)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .. import mixed_cross_entropy, sample_mix


def mixup_data(
    x: Tensor, y: Tensor, alpha: float = 1.0, use_cuda: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mixed inputs, the two labels, and λ, a 0-dim tensor (1 where alpha is 0).

    ``use_cuda`` is for the old signature: everything is drawn on the device of x.
    """
    draw = sample_mix(x.shape[0], max(alpha, 0.0), device=x.device)
    return draw.mix(x), y, y.index_select(0, draw.perm), draw.lam


def mixup_criterion(
    criterion: Callable[[Tensor, Tensor], Tensor],
    pred: Tensor,
    y_a: Tensor,
    y_b: Tensor,
    lam: float | Tensor,
) -> Tensor:
    """``lam*criterion(pred, y_a) + (1-lam)*criterion(pred, y_b)``; cross-entropy in one pass."""
    if type(criterion) is nn.CrossEntropyLoss:
        return mixed_cross_entropy(
            pred,
            y_a,
            None,
            lam,
            target_b=y_b,
            weight=criterion.weight,
            ignore_index=criterion.ignore_index,
            reduction=criterion.reduction,
            label_smoothing=criterion.label_smoothing,
        )
    return lam * criterion(pred, y_a) + (1 - lam) * criterion(pred, y_b)
