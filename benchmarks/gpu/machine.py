"""The GPU at hand, the programs beside it, and what the extension was built for."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
from datetime import datetime, timezone
from importlib.util import find_spec

import torch

from mmix_fast import info

from .. import datafile

ROOT = datafile.RESULTS.parents[1]


def said(*command: str) -> str:
    """What a program prints, or "" if it is not there or fails."""
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> str:
    """Of a checkout without changes; else ""."""
    changes = said("git", "status", "--porcelain", "--untracked-files=no")
    return "" if changes else said("git", "rev-parse", "HEAD")


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def built() -> dict:
    """The facts that setup.py wrote beside the extension; {} if it was not built."""
    return json.loads(info.FACTS.read_text()) if info.FACTS.exists() else {}


def was_built(backend: str) -> bool:
    """Whether this backend of a GPU should be usable where there is a GPU."""
    return find_spec("triton") is not None if backend == "triton" else bool(built().get("cuda"))


def architecture() -> str:
    """Such as 9.0; "" where there is no GPU."""
    if not torch.cuda.is_available():
        return ""
    return "{}.{}".format(*torch.cuda.get_device_capability())


def describe(name: str) -> dict:
    """No host name, folder or user, which would show whose machine it is."""
    facts = {
        "gpu": name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "cuda of torch": torch.version.cuda,
        "commit": commit() or "with changes, or unknown",
        "built": built(),
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if not torch.cuda.is_available():
        return facts
    has = torch.cuda.get_device_properties(0)
    return facts | {
        "architecture": architecture(),
        "multiprocessors": has.multi_processor_count,
        "memory_bytes": has.total_memory,
        "l2_bytes": has.L2_cache_size,
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }


def slug(name: str) -> str:
    """A folder's name: NVIDIA H100 80GB HBM3 -> nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
