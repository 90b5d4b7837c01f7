"""Records what torch ops return."""

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Seen(TorchDispatchMode):
    """``sizes``: how many elements the results of all ops have."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        results = out if isinstance(out, tuple) else (out,)
        self.sizes += [t.numel() for t in results if isinstance(t, Tensor)]
        return out
