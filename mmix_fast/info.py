"""``python -m mmix_fast.info`` prints what was built, and which backends are usable or why not."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from . import __version__, functional, ops
from .dispatch import BACKENDS, backends, use_backend

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


def failure_of(backend: str) -> str:
    """Why a first call fails; "" if it works. Some faults show only there: a CUDA runtime that is
    newer than the driver, no machine code for this GPU, no compiler for Triton."""
    device = next(b.device for b in BACKENDS if b.name == backend) or "cpu"
    try:
        with use_backend(backend):
            x = functional.mix(
                torch.zeros(2, 2, device=device), torch.tensor([1, 0], device=device), 0.5
            )
        x.tolist()  # an asynchronous error comes to light
    except Exception as error:  # of any kind: it is shown
        return " ".join(f"but a call fails: {error}".split())
    return ""


def table() -> str:
    lines = [
        f"mmix_fast {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads",
        built(),
    ]
    for name, status in backends().items():
        note = failure_of(name) if status.usable else "; ".join(status.reasons)
        if not note and name == "cpp":
            note = f"instruction set: {ops.kernel('mmix_fast', 'cpu_isa')()}"
        lines.append(f"{name:<12}{'usable' if status.usable else 'not usable':<12}{note}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
