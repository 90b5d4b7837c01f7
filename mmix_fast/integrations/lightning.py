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
    from pytorch_lightning.utilities.model_helpers import is_overridden
else:
    from lightning.pytorch import Callback
    from lightning.pytorch.utilities.model_helpers import is_overridden


class _OfCallback(ManifoldMixup):
    """A ManifoldMixup made by a callback; tells it from a user's own, also in a copied module."""


class ManifoldMixupCallback(Callback):
    """Creates a :class:`mmix_fast.ManifoldMixup` and sets it as ``pl_module.mixup``.

    Its hooks are active from ``setup`` to ``teardown`` of fit, validate, test and predict, or until
    an exception ends the run. If the LightningModule overrides ``setup`` or ``configure_model``,
    which may create layers, they are active from the start of the loop. Outside training,
    ``pl_module.mixup.loss`` is plain cross-entropy. After the run ``pl_module.mixup`` stays there,
    closed, and its loss is plain too. The next run, with this callback or another, replaces it.

    Args:
        layers, alpha, options: as in :class:`mmix_fast.ManifoldMixup`; names are relative to
            ``module``.
        module: the attribute of the LightningModule whose forward is hooked, such as "model"; None
            is the LightningModule itself, called as ``self(x)``.
        attribute: the name to set instead of "mixup". Two callbacks of one Trainer need different
            names and different modules, neither inside the other.

    Raises:
        TypeError: in ``setup``, the LightningModule has an attribute of that name.
        ValueError: in ``setup``, two callbacks have the same name.
        RuntimeError: as :class:`mmix_fast.ManifoldMixup`, when its hooks are installed.
    """

    def __init__(
        self,
        layers: Sequence[str] | str = "auto",
        alpha: float = 2.0,
        *,
        module: str | None = None,
        attribute: str = "mixup",
        **options: Any,
    ) -> None:
        self.layers, self.alpha, self.module, self.options = layers, alpha, module, options
        self.attribute = attribute

    def setup(self, trainer: Any, pl_module: Any, stage: str | None = None) -> None:
        name = self.attribute
        callbacks = [c for c in trainer.callbacks if isinstance(c, ManifoldMixupCallback)]
        if [c.attribute for c in callbacks].count(name) > 1:
            raise ValueError(
                f"one ManifoldMixupCallback may set {name!r}, got two in one Trainer; give one of "
                "them another attribute= (and module=), or leave it out"
            )
        there = getattr(pl_module, name, None)
        if there is not None and not isinstance(there, _OfCallback):
            raise TypeError(
                f"{type(pl_module).__name__}.{name} must be free for the ManifoldMixup, got "
                f"{type(there).__name__}; give ManifoldMixupCallback another attribute="
            )
        self._close(pl_module)
        setattr(pl_module, name, None)
        if not any(is_overridden(method, pl_module) for method in ("setup", "configure_model")):
            self._start(pl_module)

    def _start(self, pl_module: Any) -> None:
        if getattr(pl_module, self.attribute) is not None:
            return
        root: nn.Module = pl_module if self.module is None else pl_module.get_submodule(self.module)
        mixup = _OfCallback(root, self.layers, self.alpha, **self.options)
        setattr(pl_module, self.attribute, mixup)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._start(pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._start(pl_module)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self._start(pl_module)

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self._start(pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str | None = None) -> None:
        self._close(pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close(pl_module)

    def _close(self, pl_module: Any) -> None:
        mixup = getattr(pl_module, self.attribute, None)
        if isinstance(mixup, _OfCallback):
            mixup.close()
