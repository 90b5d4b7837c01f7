"""ManifoldMixup: mixes hidden layers of any model by hooks that are installed once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..sampling import Mix, check_alpha, check_pairing, sample_mix
from ..validation import check_fraction, check_index, check_logits, describe
from . import layers as layer_choice
from . import messages
from .batch import Layer
from .draws import real_tensors
from .mixing import Mixing

_log = logging.getLogger("mmix_fast")
_open: WeakSet[ManifoldMixup] = WeakSet()


class ManifoldMixup:
    """Manifold Mixup of a model: each training forward mixes the output of one of ``layers``.

    Args:
        model: any ``nn.Module``, plain, compiled or in DistributedDataParallel. Create this before
            a compiled model is first called.
        layers: names of ``model.named_modules()``, with or without ``module.`` and ``_orig_mod.``;
            "" is the model's input. "auto": the input (the embedding, for integers) and the ends of
            the first two stages or blocks; logged, and shown by ``mixup.layers``.
        alpha: λ ~ Beta(alpha, alpha).
        dim: the batch dimension, of the inputs and of the hidden layers.
        inplace: "auto": in place where the layer is known not to need its output for backward
            (convolution, linear, norms, GELU, pools), else out of place; True forces, False
            forbids. The caller's input is never written.
        per_sample, pairing, generator: as in :func:`mmix_fast.sample_mix`. Under DDP, give the
            generators of all ranks the same seed to mix the same layer with the same λ.
        prob: the probability that a forward mixes at all.

    The layer, and whether to mix at all, are drawn on the host, from ``generator`` if it is a CPU
    generator, else from torch's default generator. Nothing is mixed in ``eval()``, after
    ``close()``, and with ``enabled = False``: then ``layer`` and ``mix`` are None and ``loss`` is
    plain cross-entropy. A compiled model has one graph for each layer and one more, with a symbolic
    batch size; the draw is outside of them. Only a graph that holds the call of the model (a
    compiled step) makes the draw itself; there, layers that are not drawn mix with λ = 1.

    ``loss`` and ``accuracy`` use the draw of the forward that made the logits, in any order and
    from any thread. A model has one ManifoldMixup at a time; copies and pickles of it are closed.
    Outputs and states of torch's recurrent, attention and transformer layers are mixed along their
    own batch dimension (``batch_first``); all other outputs along ``dim``.

    Recipes (Verma et al., section 5 and appendix C): PreActResNet: the input and the ends of the
    first two stages; WideResNet: the input and the end of the first; ``alpha=2.0`` for CIFAR and
    SVHN, 0.2 for Tiny-ImageNet; trained 2 to 10 times longer than without mixing. Small data:
    ``alpha`` 1 to 2. ``layers=[""]`` with ``alpha`` 0.2 to 1 is Input Mixup.

    Raises:
        TypeError: a wrong type. At a forward: "" with integer inputs.
        ValueError: an unknown name (near names are listed), a name given twice, or a bad option. At
            a forward: the model is called with a list of tensors, which may be a batch; the drawn
            layer returned no floating tensor with the batch size, or something that cannot be
            mixed.
        RuntimeError: another ManifoldMixup is open on the model. At a forward: the drawn layer ran
            more than once, or not at all; the model is exported or traced in training.

    Equivalent PyTorch, at the drawn layer: ``h = lam * h + (1 - lam) * h[perm]``, and for the loss
    ``lam * F.cross_entropy(z, y) + (1 - lam) * F.cross_entropy(z, y[perm])``.
    Source: Verma et al., Manifold Mixup, ICML 2019, section 2.

    >>> mixup = ManifoldMixup(model, layers=["", "layer1", "layer2"], alpha=2.0)
    >>> for x, y in loader:
    ...     loss = mixup.loss(model(x), y)
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | str,
        alpha: float = 2.0,
        *,
        dim: int = 0,
        inplace: bool | str = "auto",
        per_sample: bool = False,
        pairing: str = "random",
        prob: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {describe(model)}")
        if not isinstance(inplace, bool) and inplace != "auto":
            raise ValueError(f"inplace must be True, False or 'auto', got {inplace!r}")
        check_pairing(pairing)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator must be a torch.Generator or None, got {describe(generator)}"
            )
        while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner  # a compiled module calls this one, inside the graph
        if layers == "auto":
            layers = layer_choice.auto(model)
            _log.warning("layers='auto' picked %s ('' is the model's input)", layers)
        found = [Layer(n, m, m is model) for n, m in layer_choice.resolve(model, layers)]
        for other in _open:
            if model in set(other._root.modules()) or other._root in set(model.modules()):
                raise RuntimeError(messages.second(other))
        self.layers = tuple(layer.name for layer in found)
        self.enabled = True
        self.alpha, self.prob, self.inplace = alpha, prob, inplace
        self.dim = check_index("dim", dim)
        self.per_sample, self.pairing, self.generator = per_sample, pairing, generator
        self._root: nn.Module = model
        self._mixing: Mixing | None = Mixing(self, model, found)
        _open.add(self)

    @property
    def alpha(self) -> float:
        """The parameter of Beta(alpha, alpha); may be set between forwards."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._alpha = check_alpha(value)
        with real_tensors():
            self._alpha_tensor = torch.tensor(self._alpha, dtype=torch.float64)

    @property
    def prob(self) -> float:
        """The probability that a forward mixes at all; may be set between forwards."""
        return self._prob

    @prob.setter
    def prob(self, value: float) -> None:
        self._prob = check_fraction("prob", value)
        with real_tensors():
            self._prob_tensor = torch.tensor(self._prob, dtype=torch.float64)

    def __getstate__(self) -> dict[str, Any]:
        """A copy or pickle is closed, since the hooks of a copied model mix nothing."""
        return vars(self) | {"generator": None, "_root": None, "_mixing": None}

    @property
    def layer(self) -> str | None:
        """The name, as given, of the layer that the last forward mixed; None if there was none."""
        mixing = self._mixing
        return mixing.last_layer if mixing is not None and mixing.is_on() else None

    @property
    def mix(self) -> Mix | None:
        """The draw of the last forward; None if it mixed nothing."""
        mixing = self._mixing
        if mixing is None or mixing.last is None or self.layer is None:
            return None
        return mixing.last.mix

    def loss(self, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        """:func:`mmix_fast.mixed_cross_entropy` with the draw of the forward that made the logits.

        Takes the same options. Other forwards may have run since, and ops may have been applied to
        the logits. Plain cross-entropy if that forward mixed nothing. RuntimeError if the forward
        cannot be determined: before any forward, for joined logits of several forwards, for logits
        of ``model.forward(x)`` (which skips hooks), or for a copy without a graph after another
        forward.
        """
        return self._for(logits).cross_entropy(logits, target, **options)

    def binary_cross_entropy(self, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        """:func:`mmix_fast.mixed_binary_cross_entropy`, with the same draw and rules as ``loss``.

        For multi-label targets, and for training on labels with binary cross-entropy. Plain binary
        cross-entropy, with the same options, if the forward mixed nothing.

        >>> loss = mixup.binary_cross_entropy(model(x), multi_hot, pos_weight=pos_weight)
        """
        return self._for(logits).binary_cross_entropy(logits, target, **options)

    def linear_loss(
        self, features: Tensor, head: nn.Linear, target: Tensor, **options: Any
    ) -> Tensor:
        """``mixup.loss(head(features), target)`` for heads with many classes.

        Runs :func:`mmix_fast.mixed_linear_cross_entropy`, which holds a few rows of the logits at a
        time; takes its options. ``features`` ``(B, D)`` are what the model returns without its
        head, and ``head``, an ``nn.Linear``, may be inside or outside the model. It is not called:
        its hooks do not run. The draw and the rules are those of ``loss``.

        >>> backbone = timm.create_model("vit_small_patch16_224", num_classes=0)
        >>> head = nn.Linear(384, 21841)
        >>> mixup = ManifoldMixup(backbone, layers="auto")
        >>> loss = mixup.linear_loss(backbone(x), head, y)
        """
        return self._for(features, "features").linear_loss(features, head, target, **options)

    def accuracy(self, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        """λ-weighted fraction of correct predictions: :meth:`mmix_fast.Mix.accuracy` of a draw."""
        return self._for(logits).accuracy(logits, target, **options)

    def close(self) -> None:
        """Removes the hooks: later forwards mix nothing; their loss is plain cross-entropy."""
        if self._mixing is not None:
            self._mixing.remove()
        _open.discard(self)

    def __enter__(self) -> ManifoldMixup:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _sample(self, batch: int, alpha: float, *, device: torch.device) -> Mix:
        return sample_mix(
            batch,
            alpha,
            device=device,
            per_sample=self.per_sample,
            pairing=self.pairing,
            generator=self.generator,
        )

    def __repr__(self) -> str:
        return f"ManifoldMixup(layers={list(self.layers)}, alpha={self.alpha}, prob={self.prob})"

    def _for(self, logits: Tensor, name: str = "logits") -> Mix:
        check_logits(logits, name)
        draw = None if self._mixing is None else self._mixing.draw_of(logits)
        if draw is None:
            return Mix.identity(logits.shape[0], logits.device)  # λ = 1: plain cross-entropy
        if logits.shape[:1] != draw.mix.perm.shape:
            raise ValueError(
                f"{name} must have the batch size {draw.mix.perm.shape[0]} of the forward that "
                f"made them, got {describe(logits)}"
            )
        return draw.mix.to(logits.device)
