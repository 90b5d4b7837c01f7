"""Value checks of labels and perm on the host, and the condition under which they run."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import validation as v
from ..dispatch import Backend
from ..tracing import readable


def checks_here(backend: Backend, x: Tensor, *read: Tensor | None) -> bool:
    return not backend.checks_values and v.must_check_values(x.device) and readable(*read)


def check_target_values(
    target: Tensor,
    perm: Tensor | None,
    classes: int,
    ignore_index: int,
    target_b: Tensor | None = None,
) -> None:
    if perm is not None:
        v.check_permutation_values(perm)
    for name, y in (("target", target), ("target_b", target_b)):
        if y is not None and y.dtype == torch.int64:
            v.check_label_values(name, y, classes, ignore_index)
