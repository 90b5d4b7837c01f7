"""The mixed cross-entropies of DTensors: from placements to the shard of this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from . import collective
from .cross_entropy import sharded
from .linear import sharded_linear


def mixed_cross_entropy_of_dtensor(
    of_one_process: Callable[..., Tensor], logits: Any, *args: Any, **options: Any
) -> Tensor:
    """mmix_fast.mixed_cross_entropy where the logits are a DTensor; the result is a plain tensor.

    ``of_one_process``: that function, for logits of all classes.
    """
    if logits.ndim < 2:
        raise ValueError(f"logits must have shape (B, C, ...), got {tuple(logits.shape)}")
    dim = _sharded_dim("logits", logits, 1)
    args, options = _replicated(args, options)
    local = logits.to_local(grad_placements=logits.placements)
    if dim is None:
        return of_one_process(local, *args, **options)
    return sharded(_shard_of(logits, dim, 1), local, *args, **options)


def mixed_linear_cross_entropy_of_dtensor(
    of_one_process: Callable[..., Tensor],
    input: Any,
    linear_weight: Any,
    *args: Any,
    linear_bias: Any,
    **options: Any,
) -> Tensor:
    """mmix_fast.mixed_linear_cross_entropy with a DTensor as weight, input and bias.

    ``of_one_process``: that function, for a weight of all classes. The gradient of the input is
    partial on each rank; DTensor sums it.
    """
    given = {"input": input, "linear_weight": linear_weight}
    if linear_bias is not None:
        given["linear_bias"] = linear_bias
    for name, t in given.items():
        if not isinstance(t, DTensor):
            # A plain input beside a sharded weight may be another batch on each rank (FSDP).
            raise TypeError(
                f"{name} must be a DTensor, as {' and '.join(n for n in given if n != name)}, got "
                f"{type(t).__name__}; a replicated input is "
                "DTensor.from_local(input, mesh, [Replicate()]), a parameter of FSDP must be "
                "unsharded first"
            )
    if any(t.device_mesh != linear_weight.device_mesh for t in given.values()):
        raise ValueError(f"{', '.join(given)} must be on one mesh")
    if any(not isinstance(p, Replicate) for p in input.placements):
        raise ValueError(f"input must be replicated over the mesh, got {input.placements}")
    dim = _sharded_dim("linear_weight", linear_weight, 0)
    if linear_bias is not None and linear_bias.placements != linear_weight.placements:
        raise ValueError(
            f"linear_bias must have the placements of linear_weight, {linear_weight.placements}, "
            f"got {linear_bias.placements}"
        )
    args, options = _replicated(args, options)
    weight = linear_weight.to_local(grad_placements=linear_weight.placements)
    bias = linear_bias
    if bias is not None:
        bias = bias.to_local(grad_placements=bias.placements)
    if dim is None:
        x = input.to_local(grad_placements=input.placements)
        return of_one_process(x, weight, *args, linear_bias=bias, **options)
    partial = [Partial() if d == dim else p for d, p in enumerate(input.placements)]
    x = input.to_local(grad_placements=partial)
    shard = _shard_of(linear_weight, dim, 0)
    return sharded_linear(shard, x, weight, *args, linear_bias=bias, **options)


def _sharded_dim(name: str, t: DTensor, classes: int) -> int | None:
    """The mesh dimension over which dimension ``classes`` of t is sharded; None: replicated."""
    dims = [d for d, p in enumerate(t.placements) if not isinstance(p, Replicate)]
    if not dims:
        return None
    placement = t.placements[dims[0]]
    # Not a subclass: the strided shard of FSDP beside tensor parallelism has other offsets.
    if len(dims) > 1 or type(placement) is not Shard or placement.dim != classes:
        raise ValueError(
            f"{name} must be replicated, or sharded over its classes, Shard({classes}), along one "
            f"dimension of the mesh and replicated along the others, got {t.placements}"
        )
    return dims[0]


def _shard_of(t: DTensor, dim: int, classes: int) -> collective.Shard:
    mesh, total = t.device_mesh, t.shape[classes]
    ranks, rank = mesh.size(dim), mesh.get_local_rank(dim)
    size = -(-total // ranks)  # as torch.chunk divides: the last shards may be smaller, or empty
    offset = min(rank * size, total)
    count = min(size, total - offset)
    group = collective.check_group(mesh.get_group(dim))
    return collective.Shard(group, total, offset, count, trusted=True)


def _replicated(args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The other arguments, with replicated DTensors as local tensors."""
    names = "target", "perm", "lam"
    local = tuple(_local(name, value) for name, value in zip(names, args, strict=True))
    return local, {name: _local(name, value) for name, value in options.items()}


def _local(name: str, value: Any) -> Any:
    if not isinstance(value, DTensor):
        return value
    if any(not isinstance(p, Replicate) for p in value.placements):
        raise ValueError(f"{name} must be replicated, got {value.placements}")
    return value.to_local(grad_placements=value.placements)
