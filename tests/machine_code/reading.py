"""What CUDA and Triton kernels have in common: the tools, and one row of the table for a kernel.

No GPU is needed: the tools of a CUDA toolkit or of Triton's wheel make and read machine code.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from torch.utils import cpp_extension

REGISTERS, GRAIN = 65536, 8  # of a multiprocessor; registers of a thread are rounded up to GRAIN
THREADS = 2048  # of a multiprocessor of sm_80, sm_90 and sm_100


@dataclass
class Kernel:
    name: str  # demangled, without its parameters
    architecture: str
    threads: int  # of the largest block it is launched with
    registers: int = 0
    spilled: int = 0  # bytes
    stack: int = 0  # bytes of local memory
    shared: int = 0  # bytes of static shared memory
    accesses: dict[str, int] = field(default_factory=dict)  # "load 128" -> instructions
    # Of a mixing kernel: instructions for each 16 bytes that it writes; 16-byte loads of a thread
    # that are in flight to registers (0: they go to shared memory). Of the binary cross-entropy:
    # instructions of the arithmetic alone, if there are only labels.
    of_vector: float | None = None
    loads: int = 0

    @property
    def occupancy(self) -> float:
        """Resident threads over the most that a multiprocessor holds, as registers allow."""
        each = -(-self.registers // GRAIN) * GRAIN * self.threads
        return min(REGISTERS // each, THREADS // self.threads) * self.threads / THREADS


def triton_tools() -> Path | None:
    """The folder of ptxas, nvdisasm and cuobjdump in Triton's wheel."""
    triton = importlib.util.find_spec("triton")
    if triton is None or not triton.submodule_search_locations:
        return None
    return Path(triton.submodule_search_locations[0]) / "backends/nvidia/bin"


def find_tool(name: str) -> str | None:
    """The path of nvcc, ptxas or nvdisasm: of a CUDA toolkit, else of Triton's wheel."""
    home, wheel = cpp_extension.CUDA_HOME, triton_tools()
    folders = [Path(home) / "bin"] if home else []
    folders += [Path("/usr/local/cuda/bin")]
    folders += [wheel] if wheel else []
    found = next((str(path) for folder in folders if (path := folder / name).exists()), None)
    return found or shutil.which(name)


def run_tool(*command: str) -> str:
    """Standard output and standard error together."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:1])} failed:\n{done.stderr[-3000:]}")
    return done.stdout + done.stderr


def accesses_of(sass: str) -> dict[str, int]:
    """The global and local loads and stores of one kernel, counted by their width in bits."""
    counts: dict[str, int] = {}
    for kind, suffixes in re.findall(r"\b(LDGSTS|LDG|STG|LDL|STL)\b((?:\.\w+)*)", sass):
        width = re.search(r"\.(256|128|64|[US]?16|[US]?8)\b", suffixes)
        bits = width.group(1).strip("US") if width else "32"
        place = "local " if kind.endswith("L") else ""
        name = f"{place}{'load' if kind.startswith('LD') else 'store'} {bits}"
        counts[name] = counts.get(name, 0) + 1
    return counts
