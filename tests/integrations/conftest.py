"""PyPI's torchvision beside the CPU build of torch lacks its compiled ops. It describes two of them
when imported: they are declared here first, since transforms and models are pure Python.
"""

import torch

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
