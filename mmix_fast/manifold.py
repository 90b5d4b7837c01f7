"""ManifoldMixup: hidden-layer mixing of any model, by hooks that are installed once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import layers as layer_choice
from . import nested
from .hooks import Draw, Hook, Recomputation, Traces, in_backward, met_in_traces, runs_in_trace
from .sampling import Mix, sample_mix
from .validation import check_fraction, check_index, what

_log = logging.getLogger("mmix_fast")


class ManifoldMixup:
    """Manifold Mixup of a model: in each training forward one of ``layers`` mixes its output.

    Args:
        model: any ``nn.Module``, plain, compiled or in DistributedDataParallel. Build this before
            the first call of a compiled model.
        layers: names of ``model.named_modules()``, with or without ``module.`` and ``_orig_mod.``;
            "" is the model's input. "auto": the input (the embedding, for integers) and the ends of
            the first two stages or blocks; logged, and shown by ``mixup.layers``.
        alpha: λ ~ Beta(alpha, alpha).
        dim: the batch dimension, of the inputs and of the hidden layers.
        inplace: "auto": in place where the layer is known not to need its output for backward
            (convolution, linear, norms, GELU, pools), else out of place; True forces, False
            forbids. The caller's input is never written.
        per_sample, pairing, generator: as in :func:`mmix_fast.sample_mix`. Ranks whose generators
            are seeded alike draw alike.
        prob: the probability that a forward mixes at all.

    The layer and ``prob`` are drawn on the host, from ``generator`` if that is a CPU one, else from
    torch's default generator. In ``eval()`` of the model, with ``enabled = False``, and after
    ``close()`` nothing is mixed: ``layer``, ``mix`` are None and ``loss`` is plain cross-entropy.
    Inside a compiled graph everything is drawn in the graph; the layers not drawn mix with λ = 1.

    Recipes (Verma et al., section 5 and appendix): CIFAR, PreActResNet: ``alpha=2.0``, layers the
    input and the ends of the first two stages, trained 2 to 10 times longer than without.
    Tiny-ImageNet: ``alpha=0.2``, the input and the end of the first stage. Small data: 1 to 2.
    ``layers=[""]`` with ``alpha`` 0.2 to 1 is Input Mixup.

    Raises:
        TypeError, ValueError: a name that is unknown (near names are listed) or given twice, a bad
            option. At a forward, ValueError: the drawn layer gave no floating tensor with the batch
            size; TypeError: "" with integer inputs; RuntimeError: the drawn layer ran twice, never.

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
            raise TypeError(f"model must be an nn.Module, got {what(model)}")
        check_index("dim", dim)
        check_fraction("prob", prob)
        if not isinstance(inplace, bool) and inplace != "auto":
            raise ValueError(f"inplace must be True, False or 'auto', got {inplace!r}")
        # Judges alpha and pairing without touching anybody's random state.
        sample_mix(0, alpha, pairing=pairing, generator=torch.Generator())
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or None, got {what(generator)}")
        while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner  # a compiled module calls this one, inside the graph
        names = layers
        if layers == "auto":
            names = layer_choice.auto(model)
            _log.warning("layers='auto' picked %s ('' is the model's input)", names)
        found = layer_choice.resolve(model, names)
        self.layers = tuple(name for name, _ in found)
        self.enabled = True
        self.alpha, self.dim, self.prob, self.inplace = alpha, dim, prob, inplace
        self.generator = generator
        self._sample = partial(
            sample_mix, per_sample=per_sample, pairing=pairing, generator=generator
        )
        self._host = generator if generator is not None and generator.device.type == "cpu" else None
        self._root = model
        self._input: int | None = None  # the number of the layer ""
        self._running: Draw | None = None  # while the root's forward runs
        self._last: Draw | None = None
        self._called = self._ran = self._closed = False
        self._recomputation, self._traces = Recomputation(), Traces()
        self._handles = [model.register_forward_pre_hook(Hook(self._before), with_kwargs=True)]
        for number, (_, module) in enumerate(found):
            if module is model:
                self._input = number
            else:
                hook = Hook(partial(self._at, number))
                self._handles.append(module.register_forward_hook(hook))
        self._handles.append(model.register_forward_hook(Hook(self._after)))

    @property
    def layer(self) -> str | None:
        """The name of the layer that the last forward mixed, as it was given; None where none."""
        draw = self._current()
        number = -1 if draw is None else int(draw.layer)
        return None if number < 0 else self.layers[number]

    @property
    def mix(self) -> Mix | None:
        """The draw of the last forward; None where it mixed nothing."""
        draw = self._current()
        return None if draw is None or int(draw.layer) < 0 else draw.mix

    def loss(self, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        """:func:`mmix_fast.mixed_cross_entropy` of the last forward's draw, with its options.

        Plain cross-entropy where nothing was mixed. RuntimeError in training before any forward;
        ValueError where the logits' batch is not the one that was mixed.
        """
        return self._for(logits).cross_entropy(logits, target, **options)

    def accuracy(self, logits: Tensor, target: Tensor) -> Tensor:
        """λ-weighted fraction of right predictions: :meth:`mmix_fast.Mix.accuracy` of the draw."""
        return self._for(logits).accuracy(logits, target)

    def close(self) -> None:
        """Removes the hooks; ``loss`` is plain cross-entropy from now on."""
        for handle in self._handles:
            handle.remove()
        self._closed = True
        self._running = self._last = None

    def __enter__(self) -> ManifoldMixup:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ManifoldMixup(layers={list(self.layers)}, alpha={self.alpha}, prob={self.prob})"

    def _current(self) -> Draw | None:
        off = self._closed or not self.enabled or not self._root.training
        return None if off else self._last

    def _for(self, logits: Tensor) -> Mix:
        off = self._closed or not self.enabled or not self._root.training
        if not off and not self._called:
            raise RuntimeError("loss and accuracy in training need a forward of the model first")
        if off or self._last is None:
            return Mix.identity(logits.shape[0], logits.device)  # λ = 1: plain cross-entropy
        mix = self._last.mix
        if logits.shape[:1] != mix.perm.shape:
            raise ValueError(
                f"logits must have the batch size {mix.perm.shape[0]} of the last forward, got "
                f"{what(logits)}"
            )
        return mix.to(logits.device)

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        compiling = torch.compiler.is_compiling()
        if not compiling and in_backward():
            draw = self._recomputation.draw()
        else:
            active = self.enabled and module.training
            draw = self._draw(args, kwargs) if active else None
            self._running = self._last = draw
            self._called, self._ran = True, False
            if not compiling and (module.training or torch.is_grad_enabled()):
                self._recomputation.record(draw)
        number = self._input
        mix = None if draw is None or number is None else draw.at(number)
        if mix is None or number is None:
            return None
        if compiling:
            runs_in_trace(self._traces.token, self.layers[number])
        else:
            self._ran = True
        return self._mixed(number, (args, kwargs), mix, False)  # never over the caller's tensor

    def _draw(self, args: Any, kwargs: Any) -> Draw | None:
        batch, device = self._batch(args, kwargs)
        count = len(self.layers)
        if torch.compiler.is_compiling():
            if self.generator is not None:
                raise RuntimeError("generator= cannot be used in a compiled graph; pass None there")
            perm, lam = self._sample(batch, self.alpha, device=device)
            layer = torch.randint(count, (), device=device)
            if self.prob < 1:
                off = torch.rand((), device=device) >= self.prob
                layer, lam = torch.where(off, -1, layer), torch.where(off, 1.0, lam)
            return Draw(layer, Mix(perm, lam))
        if self.prob < 1:
            chance = torch.rand((), generator=self._host, device="cpu")
            if chance.item() >= self.prob:
                return None
        number = int(torch.randint(count, (), generator=self._host, device="cpu"))
        return Draw(number, self._sample(batch, self.alpha, device=device))

    def _batch(self, args: Any, kwargs: Any) -> tuple[int, torch.device]:
        found = nested.tensors((args, kwargs))
        if not found:
            raise ValueError("the model must be called with a tensor to be mixed, got none")
        first = found[0]
        if self._input is not None and not (first.is_floating_point() or first.is_complex()):
            place = layer_choice.first_embedding(self._root)
            raise TypeError(
                f"the input must be floating to be mixed (layer ''), got {what(first)}; mix at the "
                f"embedding instead: layers=[{place or 'the name of the embedding'!r}]"
            )
        if not -first.ndim <= self.dim < first.ndim:
            raise ValueError(
                f"the model's first tensor must have its batch at dim={self.dim}, got {what(first)}"
            )
        return first.shape[self.dim], first.device

    def _at(self, number: int, module: nn.Module, args: Any, output: Any) -> Any:
        compiling = torch.compiler.is_compiling()
        again = not compiling and in_backward()
        draw = self._recomputation.draw() if again else self._running
        mix = None if draw is None else draw.at(number)
        if mix is None:
            return None
        name = self.layers[number]
        twice = runs_in_trace(self._traces.token, name) > 1 if compiling else self._ran
        if twice and not again:
            raise RuntimeError(
                f"the layer {name!r} ran twice in one forward of the model; mix one that runs once"
            )
        if not compiling and not again:
            self._ran = True
        wish = self.inplace
        inplace = layer_choice.output_is_fresh(module) if wish == "auto" else bool(wish)
        # A graph's buffers are the compiler's: it needs no copy, and may be traced where we raise.
        return self._mixed(number, output, mix, inplace and not compiling)

    def _mixed(self, number: int, value: Any, mix: Mix, inplace: bool) -> Any:
        new = nested.mix_tensors(value, mix, self.dim, inplace)
        if new is None:
            shapes = "; ".join(what(t) for t in nested.tensors(value)) or "no tensor"
            raise ValueError(
                f"the layer {self.layers[number]!r} must give a floating tensor with the batch "
                f"size {mix.perm.shape[0]} at dim={self.dim}, got {shapes}"
            )
        return new

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and in_backward():
            return
        draw, self._running = self._running, None
        if draw is None or self._ran:
            return
        drawn = self.layers if isinstance(draw.layer, Tensor) else (self.layers[draw.layer],)
        for name in drawn:
            if not met_in_traces(self._traces.token, name):
                raise RuntimeError(f"the layer {name!r} did not run in the forward of the model")
