"""``python -m mmix_fast.info`` prints what was built, and which backends are usable or why not."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from . import __version__, ops
from .dispatch import backends

FACTS = Path(__file__).with_name("build.json")  # setup.py writes it beside the extension


def built() -> str:
    if not FACTS.exists():
        return f"not built: no {FACTS.name} beside {Path(__file__).name}"
    facts = json.loads(FACTS.read_text())
    cuda = f"CUDA {facts['cuda']} for {' '.join(facts['architectures'])}"
    return (
        f"built as {facts['version']} from commit {facts['commit']} against torch {facts['torch']}"
        f", {cuda if facts['cuda'] else 'without CUDA'}"
    )


def table() -> str:
    lines = [
        f"mmix_fast {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads",
        built(),
    ]
    for name, status in backends().items():
        note = "; ".join(status.reasons)
        if name == "cpp" and status.usable:
            note = f"instruction set: {ops.kernel('mmix_fast', 'cpu_isa')()}"
        lines.append(f"{name:<12}{'usable' if status.usable else 'not usable':<12}{note}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
