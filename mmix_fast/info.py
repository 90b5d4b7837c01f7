"""``python -m mmix_fast.info``: each backend, whether it is usable here, and why not."""

from __future__ import annotations

import torch

from . import __version__, ops
from .dispatch import backends


def table() -> str:
    lines = [
        f"mmix_fast {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    ]
    for name, status in backends().items():
        note = "; ".join(status.reasons)
        if name == "cpp" and status.usable:
            note = f"instruction set: {ops.kernel('mmix_fast', 'cpu_isa')()}"
        lines.append(f"{name:<12}{'usable' if status.usable else 'not usable':<12}{note}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
