"""Manifold Mixup in a Hugging Face Trainer: ``MixupTrainer`` instead of ``Trainer``.

>>> trainer = MixupTrainer(model, args, train_dataset=data,
...                        layers=["bert.embeddings", "bert.encoder.layer.0"], alpha=1.0)
>>> trainer.train()

Supported: classifiers of sequences, images, audio, video and tokens, single-label (cross-entropy)
and multi-label (binary cross-entropy), and masked language models. Not supported (TypeError):
regression, causal and sequence-to-sequence models, question answering and other models without a
single ``labels``, ``compute_loss_func``, DataParallel.

In your own Trainer: create ``self.mixup = ManifoldMixup(model, ...)`` once. In ``compute_loss``,
take the labels out of the inputs (otherwise the model computes its own loss), and return
``self.mixup.loss(model(**inputs).logits, labels)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.utils.generic import find_labels

from .. import mixed_binary_cross_entropy, mixed_cross_entropy
from ..functional.mixed_target import multi_hot
from ..manifold import ManifoldMixup
from ..validation import describe

# Parts of the class names in transformers. BY_PROBLEM_TYPE choose their loss by
# config.problem_type; BY_TOKEN always use cross-entropy with class indices.
BY_PROBLEM_TYPE = (
    "ForSequenceClassification",
    "ForImageClassification",
    "ForAudioClassification",
    "ForVideoClassification",
)
BY_TOKEN = ("ForTokenClassification", "ForMaskedLM")
SHIFTED = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


class MixupTrainer(Trainer):
    """A Trainer for classifiers whose training loss is mixed; evaluation is unchanged.

    Args:
        layers, alpha, mixup_options: as in :class:`mmix_fast.ManifoldMixup`; names are relative to
            the model. For token models give the embedding instead of "". All other arguments are
            Trainer's.
        loss_options: of :func:`mmix_fast.mixed_cross_entropy`, such as
            ``{"weight": torch.tensor([1.0, 5.0])}``; for multi-label models of
            :func:`mmix_fast.mixed_binary_cross_entropy`, such as ``pos_weight``. They apply to
            training only: the evaluation loss is the model's.

    The loss is computed from the model's logits; the model's own loss is not used. The problem type
    is ``model.config.problem_type`` or, as in transformers, follows from the labels: integers are
    single-label, floats multi-label. Your own model class must set it for float labels.
    ``args.label_smoothing_factor`` applies to single-label training. The micro-batches of an
    accumulated step have equal weight, whatever their number of labels. ``model_init`` makes a new
    model, and a new ``trainer.mixup``, for each ``train()``. Before a second MixupTrainer on one
    model, call ``trainer.mixup.close()`` of the first.

    Raises:
        TypeError: an option, model or (at the first step) labels that are not supported; the
            message names it.
        ValueError, RuntimeError: as :class:`mmix_fast.ManifoldMixup`.
    """

    mixup: ManifoldMixup

    def __init__(
        self,
        *args: Any,
        layers: Sequence[str] | str = "auto",
        alpha: float = 2.0,
        mixup_options: dict[str, Any] | None = None,
        loss_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is not None:
            raise TypeError(
                "compute_loss_func must be None, since MixupTrainer computes the loss; pass "
                "loss_options, or mix in a Trainer of your own with mmix_fast.ManifoldMixup"
            )
        if self.args.n_gpu > 1:
            raise TypeError(
                f"args.n_gpu must be 1, got {self.args.n_gpu}: nn.DataParallel would mix each "
                "part of a batch by itself; start one process for each GPU with torchrun"
            )
        # Otherwise Trainer assumes that the model divided its loss by all accumulated items.
        self.model_accepts_loss_kwargs = False
        self._layers, self._alpha, self._mixup_options = layers, alpha, mixup_options or {}
        self._loss_options = _loss_options(loss_options or {}, self.args)
        self._mix_model(self.model)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        model = super().call_model_init(trial)
        if hasattr(self, "mixup"):  # called by train(); the constructor calls _mix_model itself
            self._mix_model(model)
        return model

    def _mix_model(self, model: Any) -> None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's
        self._task, self._config = _task(inner), getattr(inner, "config", None)
        self._labels = _labels_name(self.label_names)
        _refuse_regression(self._task, self._config)
        if hasattr(self, "mixup"):
            self.mixup.close()
        self.mixup = ManifoldMixup(model, self._layers, self._alpha, **self._mixup_options)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if inputs.get(self._labels) is None:
            raise TypeError(
                f"inputs must hold {self._labels!r} to train with, got {', '.join(inputs)}; name "
                "the labels with args.label_names"
            )
        labels = inputs[self._labels]
        outputs = model(**{name: value for name, value in inputs.items() if name != self._labels})
        logits = _logits(outputs)
        labels = labels.to(logits.device)
        if _is_multi_label(self._task, self._config, labels):
            loss = self._binary_loss(logits, labels)
        else:
            loss = self._cross_entropy(logits, labels)
        return (loss, outputs) if return_outputs else loss

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        options = {"label_smoothing": self.args.label_smoothing_factor, **self._loss_options}
        rows = logits.shape[:-1]
        if logits.shape[-1] == 1:  # the cross-entropy of one class is always 0
            raise TypeError(f"logits must be of two classes or more, got {describe(logits)}")
        if not labels.is_floating_point() and labels.numel() == rows.numel():
            labels = labels.reshape(rows)  # such as (B, 1); transformers flattens them too
        # In transformers the classes come last: (B, length, C).
        return self.mixup.loss(logits.movedim(-1, 1), labels, **options)

    def _binary_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if labels.shape != logits.shape:
            raise ValueError(
                f"labels of multi-label classification must have the logits' shape "
                f"{tuple(logits.shape)}, got {describe(labels)}"
            )
        logits, labels = logits.movedim(-1, 1), multi_hot(labels).movedim(-1, 1)
        return self.mixup.binary_cross_entropy(logits, labels, **self._loss_options)


def _loss_options(options: Mapping[str, Any], args: Any) -> dict[str, Any]:
    """Checks the options, and moves their tensors to the training device."""
    ops = (mixed_cross_entropy, mixed_binary_cross_entropy)
    parameters = [p for op in ops for p in inspect.signature(op).parameters.values()]
    known = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"target_b"}
    for name in options:
        if name not in known:
            raise TypeError(
                "loss_options must be of mixed_cross_entropy or mixed_binary_cross_entropy, got "
                f"{name!r}"
            )
    if args.label_smoothing_factor and "label_smoothing" in options:
        raise TypeError(
            "label smoothing must be given once, got args.label_smoothing_factor="
            f"{args.label_smoothing_factor} and loss_options['label_smoothing']="
            f"{options['label_smoothing']}"
        )
    if options.get("reduction") == "none":
        raise TypeError("loss_options['reduction'] must be 'mean' or 'sum' to train, got 'none'")
    return {k: v.to(args.device) if isinstance(v, Tensor) else v for k, v in options.items()}


def _task(model: nn.Module) -> str | None:
    """The supported task in the name of the model's class or a base; None for a user's class."""
    for cls in type(model).__mro__:
        for task in BY_PROBLEM_TYPE + BY_TOKEN:
            if task in cls.__name__:
                return task
        takes_labels = (
            cls.__module__.startswith(("transformers.", "transformers_modules."))
            and hasattr(cls, "forward")  # a mixin has none
            and find_labels(cls)
        )
        if takes_labels or cls.__name__.endswith(SHIFTED):
            raise TypeError(
                f"model must be a classifier whose labels belong to their own position, got "
                f"{cls.__name__}; mix it with mmix_fast.ManifoldMixup in a Trainer of your own, "
                "whose compute_loss shifts the labels or computes what else the model does"
            )
    return None


def _labels_name(label_names: Sequence[str]) -> str:
    if "labels" in label_names or not label_names:
        return "labels"
    if len(label_names) > 1:
        raise TypeError(
            f"the model must take one argument of labels, got label_names={list(label_names)}; mix "
            "it with mmix_fast.ManifoldMixup in a Trainer of your own"
        )
    return label_names[0]


def _refuse_regression(task: str | None, config: Any) -> None:
    problem, count = (getattr(config, name, None) for name in ("problem_type", "num_labels"))
    told = task in BY_PROBLEM_TYPE and problem is None and count == 1
    if task not in BY_TOKEN and (told or problem == "regression"):
        raise TypeError(
            "problem_type must be 'single_label_classification' or 'multi_label_classification', "
            f"got {problem!r} with num_labels={count}, which is regression; mix the targets with "
            "mixup.mix in a Trainer of your own"
        )


def _is_multi_label(task: str | None, config: Any, labels: Tensor) -> bool:
    """By config.problem_type, else by the labels' dtype, as in transformers' own loss."""
    problem = getattr(config, "problem_type", None)
    indices = not labels.is_floating_point() and labels.dtype != torch.bool
    if task in BY_TOKEN:
        if not indices:
            raise TypeError(f"labels of {task} must be class indices, got {describe(labels)}")
        return False
    if problem is not None:
        return problem == "multi_label_classification"
    if task is None:
        if not indices:
            raise TypeError(
                "labels must be class indices, or config.problem_type must say 'multi_label_"
                "classification' or, for probabilities, 'single_label_classification', got "
                f"{describe(labels)}"
            )
    elif config is not None:  # as the model's own loss does; pipelines of a saved model read it
        config.problem_type = f"{'single' if indices else 'multi'}_label_classification"
    return not indices


def _logits(outputs: Any) -> Tensor:
    """The logits of a ModelOutput or mapping, or the first item of a tuple (return_dict=False)."""
    if isinstance(outputs, Mapping):
        outputs = outputs.get("logits")
    elif isinstance(outputs, tuple | list):
        outputs = outputs[0]
    elif hasattr(outputs, "logits"):
        outputs = outputs.logits
    if not isinstance(outputs, Tensor):
        raise TypeError(
            "the model must give logits, as outputs.logits or first in a tuple, got "
            f"{type(outputs).__name__}"
        )
    return outputs
