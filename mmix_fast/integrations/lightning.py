"""Manifold Mixup as a Lightning callback (``lightning`` or ``pytorch_lightning``).

>>> trainer = Trainer(callbacks=[ManifoldMixupCallback(["", "layer1", "layer2"], alpha=2.0)])
>>> class Model(LightningModule):
...     def training_step(self, batch, batch_idx):
...         x, y = batch
...         return self.mixup.loss(self(x), y)
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import nn

from ..manifold import ManifoldMixup

if TYPE_CHECKING or not find_spec("lightning"):
    from pytorch_lightning import Callback
else:
    from lightning.pytorch import Callback


class ManifoldMixupCallback(Callback):
    """Hooks a :class:`mmix_fast.ManifoldMixup` and sets it as ``pl_module.mixup``.

    It is there from ``setup`` to ``teardown`` of fit, validate, test and predict; but for training,
    ``pl_module.mixup.loss`` is plain cross-entropy.

    Args:
        layers, alpha, options: as of ManifoldMixup, names as seen from ``module``.
        module: the attribute of the LightningModule whose forward is hooked, such as "model"; None
            is the LightningModule itself, called as ``self(x)``.
    """

    def __init__(
        self,
        layers: Sequence[str] | str = "auto",
        alpha: float = 2.0,
        *,
        module: str | None = None,
        **options: Any,
    ) -> None:
        self.layers, self.alpha, self.module, self.options = layers, alpha, module, options

    def setup(self, trainer: Any, pl_module: Any, stage: str | None = None) -> None:
        root: nn.Module = pl_module if self.module is None else pl_module.get_submodule(self.module)
        pl_module.mixup = ManifoldMixup(root, self.layers, self.alpha, **self.options)

    def teardown(self, trainer: Any, pl_module: Any, stage: str | None = None) -> None:
        pl_module.mixup.close()
