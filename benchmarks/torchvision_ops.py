"""Lets torchvision be imported beside a CPU build of torch.

PyPI's torchvision then cannot load its compiled library, but registers fake versions of two of
its ops when it is imported, which fails. Declaring these ops first is enough: transforms and models
are pure Python. If the library loads, declaring them again would abort Python.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch


def library_loads() -> bool:
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # not installed: nothing to declare
    try:
        torch.ops.load_library(str(Path(spec.origin).with_name("_C.so")))
    except OSError:
        return False
    return True


@cache
def declare_missing() -> torch.library.Library | None:
    """The ops exist as long as the library that is returned; the cache keeps it alive."""
    if library_loads():
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
