"""Every op as a function of one float tensor, for tests of tracers and transforms."""

import torch

import mmix_fast as m

B, C = 6, 5


def data(dtype=torch.float32):
    """The tensors of a call besides x. New ones each time: a tracer can make them inputs."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    return {
        "perm": torch.tensor([1, 2, 0, 5, 3, 4]),
        "index": torch.tensor([3, 0, 0, 5, 3, 0]),  # of a second batch: with repeats
        "y": labels,
        "y_b": labels.flip(0).clone(),
        "t": torch.rand(B, C, generator=draw, dtype=dtype).softmax(1),
        "lam": torch.tensor(0.3, dtype=dtype),
        "lams": torch.tensor([0.0, 1.0, 0.25, 0.5, 0.9, 0.1], dtype=dtype),
    }


def x(dtype=torch.float32):
    return torch.linspace(-1, 1, B * C, dtype=dtype).reshape(B, C)


def _loss(**options):
    return {
        "labels": lambda z, d: m.mixed_cross_entropy(z * 1, d["y"], d["perm"], d["lam"], **options),
        "pairs": lambda z, d: m.mixed_cross_entropy(
            z * 1, d["y"], None, d["lams"], target_b=d["y_b"], **options
        ),
        "probabilities": lambda z, d: m.mixed_cross_entropy(
            z * 1, d["t"], d["perm"], d["lam"], **options
        ),
    }


MIXES = {
    "mix": lambda z, d: m.mix(z, d["perm"], 0.3),
    "mix, lam per sample": lambda z, d: m.mix(z, d["perm"], d["lams"]),
    "mix_": lambda z, d: m.mix_(z * 1, d["perm"], d["lam"]),
    "mix with other": lambda z, d: m.mix(z, d["index"], d["lams"], other=z * 2),
    "mix_ with other in pairs": lambda z, d: m.mix_(z * 1, None, d["lams"], other=z.sin()),
    "mix_batch_": lambda z, d: m.mix_batch_(
        z * 1, d["y"], d["perm"], d["lams"], num_classes=C, dtype=z.dtype
    )[0],
    "mix_batch_, targets": lambda z, d: (
        z * m.mix_batch_(z * 1, d["y"], d["perm"], d["lam"], num_classes=C, dtype=z.dtype)[1]
    ),
    "mix_targets": lambda z, d: (
        z * m.mix_targets(d["y"], d["perm"], d["lams"], num_classes=C, dtype=z.dtype)
    ),
    "mix_targets of pairs": lambda z, d: (
        z * m.mix_targets(d["y"], None, d["lams"], target_b=d["y_b"], num_classes=C, dtype=z.dtype)
    ),
}
LOSSES = {
    f"loss, {kind}, {reduction}": call
    for reduction in ("mean", "sum", "none")
    for kind, call in _loss(reduction=reduction).items()
}


def _binary(**options):
    return {
        "labels": lambda z, d: m.mixed_binary_cross_entropy(
            z * 1, d["y"], None, d["lams"], target_b=d["y_b"], label_smoothing=0.1, **options
        ),
        "multi-hot": lambda z, d: m.mixed_binary_cross_entropy(
            z * 1, d["t"] > 0.2, d["perm"], d["lam"], **options
        ),
    }


LOSSES |= {
    f"binary loss, {kind}, {reduction}": call
    for reduction in ("mean", "none")
    for kind, call in _binary(reduction=reduction).items()
}
# With the identity as weight, the logits are z.
LOSSES |= {
    f"linear loss, {reduction}": lambda z, d, reduction=reduction: m.mixed_linear_cross_entropy(
        z * 1,
        torch.eye(C, dtype=z.dtype, device=z.device),
        d["y"],
        d["perm"],
        d["lam"],
        reduction=reduction,
        chunk_size=2,
    )
    for reduction in ("mean", "sum")
}
IN_PLACE = {
    f"loss in place, {reduction}": _loss(reduction=reduction, inplace_backward=True)["labels"]
    for reduction in ("mean", "none")
}
IN_PLACE["binary loss in place, mean"] = _binary(inplace_backward=True)["multi-hot"]
# Only plain PyTorch has the gradient to x of these.
PLAIN = {
    "cutmix_": lambda z, d: m.cutmix_((z * 1).reshape(B, C, 1), d["perm"], (0, 3, 0, 1))[0],
    "mix_targets, float": lambda z, d: m.mix_targets(z, d["perm"], d["lams"], dtype=z.dtype),
}
EVERY = {**MIXES, **LOSSES, **IN_PLACE, **PLAIN}


def served(backend, name):
    return backend == "reference" or name not in PLAIN


def step(call, up):
    """A function of tensors that gives the gradient to x; without ``up``, the upstream is 1."""

    def gradient(z, d):
        z = z.detach().requires_grad_()
        out = call(z, d)
        return torch.autograd.grad((out.sin() if up else out).sum(), z)[0]

    return gradient
