"""Drop-ins for ``mixup_data`` and ``mixup_criterion`` of facebookresearch/mixup-cifar10.

>>> x, y_a, y_b, lam = mixup_data(x, y, alpha=1.0)
>>> loss = mixup_criterion(criterion, model(x), y_a, y_b, lam)

The draws are those of the original: λ from NumPy's global state, the pairing from torch's CPU
generator.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import mix, mixed_cross_entropy


def mixup_data(
    x: Tensor, y: Tensor, alpha: float = 1.0, use_cuda: bool = True
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Returns mixed inputs, the two targets, and λ, a Python float (1.0 if alpha is 0 or less).

    Args:
        x: ``(B, ...)``; integers are mixed in torch's default dtype, as type promotion does.
        y: ``(B, ...)`` of any dtype: labels, or regression targets.
        alpha: λ ~ Beta(alpha, alpha).
        use_cuda: ignored, kept for the old signature; the pairing is copied to the devices of x
            and y in any case.

    Raises:
        TypeError, ValueError: as :func:`mmix_fast.mix`.

    Equivalent PyTorch: ``lam * x + (1 - lam) * x[index], y, y[index], lam`` with
    ``lam, index = np.random.beta(alpha, alpha), torch.randperm(B)``.
    Source: mixup-cifar10's train.py.

    >>> x, y_a, y_b, lam = mixup_data(x, y, alpha=1.0)
    """
    lam = float(np.random.beta(alpha, alpha)) if alpha > 0 else 1.0
    index = torch.randperm(x.shape[0])
    partners = y[_on(y.device, index)]
    if alpha <= 0:
        return x.clone(), y, partners, lam
    if not x.is_floating_point():
        x = x.to(torch.get_default_dtype())
    return mix(x, _on(x.device, index), lam), y, partners, lam


def _on(device: torch.device, index: Tensor) -> Tensor:
    # A copy to the CPU must block; a copy from the CPU need not.
    return index.to(device, non_blocking=device.type != "cpu")


def mixup_criterion(
    criterion: Callable[[Any, Any], Any], pred: Any, y_a: Any, y_b: Any, lam: float | Tensor
) -> Any:
    """``lam*criterion(pred, y_a) + (1-lam)*criterion(pred, y_b)``, for any criterion.

    With an ``nn.CrossEntropyLoss`` (or ``F.cross_entropy``) and a batch, it takes one pass over the
    logits, with the criterion's weight, ignore_index, reduction and label_smoothing; the result has
    the dtype that the criterion would return. In all other cases, such as unbatched logits, a
    subclass, another loss or a λ of more than one element, it calls the criterion twice.

    Args:
        criterion: of ``(pred, target)``.
        pred: what the model returned; for one pass over the logits ``(B, C, ...)``, floating.
        y_a: the samples' own targets, labels ``(B, ...)`` or probabilities of pred's shape.
        y_b: the partners' targets, of y_a's shape and dtype.
        lam: the weight of ``y_a``, a number or a tensor.

    Raises:
        TypeError, ValueError, IndexError: in one pass as :func:`mmix_fast.mixed_cross_entropy`,
            else what the criterion raises.

    Equivalent PyTorch: ``lam * criterion(pred, y_a) + (1 - lam) * criterion(pred, y_b)``.
    Source: mixup-cifar10's train.py.

    >>> loss = mixup_criterion(criterion, model(x), y_a, y_b, lam)
    """
    if criterion is F.cross_entropy:
        criterion = nn.CrossEntropyLoss()
    if type(criterion) is not nn.CrossEntropyLoss or not _one_pass(pred, y_a, y_b, lam):
        return lam * criterion(pred, y_a) + (1 - lam) * criterion(pred, y_b)
    loss = mixed_cross_entropy(
        pred,
        y_a,
        None,
        lam if isinstance(lam, Tensor) else float(lam),
        target_b=y_b,
        weight=criterion.weight,
        ignore_index=criterion.ignore_index,
        reduction=criterion.reduction,
        label_smoothing=criterion.label_smoothing,
    )
    # PyTorch's loss of half-precision logits has their dtype, except under autocast: float32.
    if loss.dtype != pred.dtype and not torch.is_autocast_enabled(pred.device.type):
        loss = loss.to(pred.dtype)
    return loss


def _one_pass(pred: Any, y_a: Any, y_b: Any, lam: Any) -> bool:
    """True if mixed_cross_entropy gives the same as two calls of nn.CrossEntropyLoss."""
    if not (isinstance(pred, Tensor) and isinstance(y_a, Tensor) and isinstance(y_b, Tensor)):
        return False
    if isinstance(lam, Tensor):
        if lam.ndim or not lam.is_floating_point():
            return False
    elif not isinstance(lam, Real):
        return False
    if pred.ndim < 2 or not pred.is_floating_point() or y_a.dtype != y_b.dtype:
        return False
    expected = pred.shape
    if y_a.dtype in (torch.int64, torch.uint8):  # the label dtypes that PyTorch accepts
        expected = expected[:1] + expected[2:]
    elif not y_a.is_floating_point():
        return False
    return y_a.shape == y_b.shape == expected
