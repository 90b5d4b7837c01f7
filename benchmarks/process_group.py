"""Enters and leaves the process group of this process, so that no thread of it is left."""

from __future__ import annotations

import gc
from typing import Any

import torch.distributed as dist


def enter(backend: str, **options: Any) -> None:
    """``dist.init_process_group``, after which nothing of torch's own modules keeps the group."""
    # Its functions take the group of the moment of their import as a default, and so keep it. DDP,
    # torch.compile and dispatch modes import it; before any group there is none to keep.
    import torch.distributed.nn.functional  # noqa: F401

    dist.init_process_group(backend, **options)


def leave() -> None:
    """Destroys the group.

    A group that something still refers to lives on, with the threads of gloo. If one of them drops
    a tensor while the interpreter ends, the process aborts ("terminate called without an active
    exception", pytorch/pytorch#190489). So call it when no model with the group is in use. Caches
    of torch keep the group of a DTensor, and that of a compiled ``mmix_fast.distributed`` loss.
    """
    gc.collect()  # models and graphs in a cycle of references, as that of a caught exception
    dist.destroy_process_group()
