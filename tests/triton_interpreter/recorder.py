"""Which kernels have run in this session: (kernel, dtype of its main tensor)."""

import torch

from mmix_fast.triton import binary_loss_kernels, cutmix, cycles, kernels, loss_kernels, walk
from tests.support.cases import DTYPES

RAN = set()

_MAIN = ("logits", "x_ptr", "soft_ptr", "sums_ptr", "perm_ptr")


def note(launch):
    found = (launch.args.get(name) for name in _MAIN)
    tensors = (getattr(each, "ptr", each) for each in found)
    RAN.add((launch.kernel.fn.__name__, next(t for t in tensors if t is not None).dtype))


def missing():
    """Every (kernel, dtype) that has not run."""
    modules = (kernels, cutmix, walk, cycles, loss_kernels, binary_loss_kernels)
    every = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    wanted = set()
    for name in every:
        dtypes = DTYPES
        if name in ("uses_kernel", "order_kernel"):  # these work on indices only
            dtypes = [torch.int64]
        elif name == "divisors_kernel":
            dtypes = [torch.float32, torch.float64]
        wanted |= {(name, dtype) for dtype in dtypes}
    return sorted(map(str, wanted - RAN))
