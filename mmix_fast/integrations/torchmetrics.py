"""The λ-weighted accuracy on mixed samples as a torchmetrics ``Metric``.

>>> from mmix_fast.integrations.torchmetrics import MixedAccuracy
>>> train = MetricCollection({"top1": MixedAccuracy(), "top5": MixedAccuracy(topk=5)})
>>> train.update(model(mix.mix(x)), y, mix=mix)  # for each batch
>>> train.compute()  # at the end of an epoch, summed over all processes
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ..functional import MixedTarget
from ..sampling import Mix
from ..validation import check_index


class MixedAccuracy(Metric):
    """The mean of :meth:`mmix_fast.Mix.accuracy` over all samples, whatever their batches.

    Args:
        topk: correct means that the label is among the ``topk`` largest logits.
        options: of torchmetrics.Metric, such as ``sync_on_compute``.

    ``update(logits, target, mix)`` takes what :meth:`mmix_fast.Mix.accuracy` takes. ``mix`` is the
    :class:`mmix_fast.Mix` of the batch, such as ``mixup.mix``; None: nothing was mixed, and the
    accuracy is the plain one, or that of a :class:`mmix_fast.MixedTarget` as target. A label of
    -100 counts, and is never correct. In a MetricCollection pass ``mix=`` by its name, since other
    metrics do not know it.

    Raises:
        ValueError, TypeError: a bad topk. In ``update`` as :meth:`mmix_fast.Mix.accuracy`.

    >>> metric = MixedAccuracy(topk=5)
    >>> metric.update(logits, y, mix)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    correct: Tensor
    total: Tensor

    def __init__(self, topk: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.topk = check_index("topk", topk)
        if self.topk < 1:
            raise ValueError(f"topk must be at least 1, got {topk}")
        self.add_state("correct", torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor | MixedTarget, mix: Mix | None = None) -> None:
        if mix is None:
            mix = Mix.identity(len(logits), logits.device)
        share = mix.accuracy(logits, target, self.topk)
        count = logits.numel() // logits.shape[1]  # one for each pixel of a map
        if count > 0:  # else the share is NaN
            self.correct += share * count
            self.total += count

    def compute(self) -> Tensor:
        return self.correct / self.total
