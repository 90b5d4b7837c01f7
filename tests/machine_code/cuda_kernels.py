"""What the CUDA kernels are compiled to.

nvcc makes PTX, ptxas makes machine code and lists its registers, and nvdisasm shows instructions.
"""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from tests.machine_code import loops
from tests.machine_code.reading import Kernel, accesses_of, find_tool, run_tool
from tests.support.cases import ROOT

ARCHITECTURES = ("80", "90", "100")
# The binary cross-entropy with labels alone, and the elements of a vector.
LEAN_BINARY = re.compile(r"binary_cross_entropy_tiles<\w+, false, (\d), false>")


def missing() -> str:
    """Which tools are missing here, or an empty string."""
    absent = [t for t in ("nvcc", "ptxas", "nvdisasm") if find_tool(t) is None]
    return f"{', '.join(absent)} not found" if absent else ""


def short_name(demangled: str) -> str:
    """A kernel's name without its namespace and parameters."""
    plain = re.sub(r"^void ", "", demangled).replace("mmix::", "")
    return re.match(r"\w+(<[^()]*>)?", plain).group(0)  # type: ignore[union-attr]


def _demangle(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    return [short_name(n) for n in done.stdout.splitlines()]


def inspect(source: Path, architecture: str, folder: Path) -> list[Kernel]:
    """The kernels of one .cu file. ``folder`` takes what the tools write."""
    include = sysconfig.get_paths()["purelib"] + "/torch/include"
    nvcc, ptxas, nvdisasm = (str(find_tool(t)) for t in ("nvcc", "ptxas", "nvdisasm"))
    ptx, cubin = folder / f"{source.stem}.ptx", folder / f"{source.stem}.cubin"
    run_tool(
        *(nvcc, "-ptx", f"-arch=compute_{architecture}", "-O3", "-std=c++20", str(source)),
        *("-DTORCH_TARGET_VERSION=0x020a000000000000", "-o", str(ptx)),
        *(f"-I{ROOT / 'csrc'}", f"-I{include}", f"-I{include}/torch/csrc/api/include"),
    )
    log = run_tool(ptxas, f"-arch=sm_{architecture}", "-O3", "-v", str(ptx), "-o", str(cubin))
    text = ptx.read_text()
    entries = re.findall(r"\.entry (\w+)\((?:.*?)\)\s*((?:\.\w+ [^\n]*\n)*)", text, re.S)
    mangled = [name for name, _ in entries]
    kernels = {}
    for (key, directives), name in zip(entries, _demangle(mangled), strict=True):
        block = re.search(r"\.(?:max|req)ntid (\d+)", directives)
        kernels[key] = Kernel(name, f"sm_{architecture}", int(block.group(1)) if block else 256)
    for key, report in re.findall(
        r"entry function '(\w+)'.*?\n(.*?)(?=Compiling entry|\Z)", log, re.S
    ):
        k = kernels[key]
        number = lambda pattern, r=report: sum(map(int, re.findall(pattern, r)))  # noqa: E731
        k.registers = number(r"Used (\d+) registers")
        k.spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
        k.stack, k.shared = number(r"(\d+) bytes stack frame"), number(r"(\d+) bytes smem")
    for part in re.split(r"\n(?=\.text\.)", run_tool(nvdisasm, "-c", str(cubin))):
        header = re.match(r"\.text\.(\w+):", part)
        if header and header.group(1) in kernels:
            kernel = kernels[header.group(1)]
            kernel.accesses = accesses_of(part)
            if kernel.name.startswith(("mix_slab_aligned", "mix_gather", "cutmix", "mix_other")):
                inner = loops.innermost_loops(part)
                kernel.of_vector = loops.of_vector(inner)
                kernel.loads = loops.reading(inner)[1] if kernel.of_vector else 0
            elif lean := LEAN_BINARY.match(kernel.name):
                kernel.of_vector = loops.of_arithmetic(part, int(lean.group(1)))
                kernel.loads = 4  # BinaryTile::kDepth
    return list(kernels.values())


def inspect_all(architectures: tuple[str, ...] = ARCHITECTURES) -> list[Kernel]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
            for architecture in architectures:
                found += inspect(source, architecture, Path(folder))
    return found
