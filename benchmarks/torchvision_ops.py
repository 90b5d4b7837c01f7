"""PyPI's torchvision beside the CPU build of torch lacks its compiled ops. It describes two of them
when imported: where its library can't be loaded they are declared here first, since transforms and
models are pure Python. Where it can be loaded, declaring them again would abort Python.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch


def library_loads() -> bool:
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # not installed: nothing to stand in for
    try:
        torch.ops.load_library(str(Path(spec.origin).with_name("_C.so")))
    except OSError:
        return False
    return True


@cache
def declare_missing() -> torch.library.Library | None:
    """What it returns must live as long as the ops: the cache keeps it."""
    if library_loads():
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
