"""Manifold Mixup in a Hugging Face Trainer: ``MixupTrainer`` instead of ``Trainer``.

>>> trainer = MixupTrainer(model, args, train_dataset=data,
...                        layers=["bert.embeddings", "bert.encoder.layer.0"], alpha=1.0)
>>> trainer.train()

In a Trainer of your own: make ``self.mixup = ManifoldMixup(model, ...)`` once, take the labels out
of the inputs in ``compute_loss`` (else the model computes a loss of its own), and return
``self.mixup.loss(model(**inputs).logits, labels)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import Trainer

from ..manifold import ManifoldMixup


class MixupTrainer(Trainer):
    """A Trainer of classifiers whose training loss is mixed; evaluation is as ever.

    Args:
        layers, alpha, mixup_options: of :class:`mmix_fast.ManifoldMixup`, names as seen from the
            model; give the embedding instead of "" for models of tokens. The rest is Trainer's.
    """

    def __init__(
        self,
        *args: Any,
        layers: Sequence[str] | str = "auto",
        alpha: float = 2.0,
        mixup_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        # Else Trainer takes the loss for one that the model has divided by all accumulated items.
        self.model_accepts_loss_kwargs = False
        model: Any = self.model
        self.mixup = ManifoldMixup(model, layers, alpha, **(mixup_options or {}))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs=return_outputs)
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        logits = outputs.logits.movedim(-1, 1)  # classes come last there: (B, length, C)
        smoothing = self.args.label_smoothing_factor
        loss = self.mixup.loss(logits, labels, label_smoothing=smoothing)
        return (loss, outputs) if return_outputs else loss
