"""What the CUDA and Triton kernels are compiled to: registers, spills, occupancy, widths of access.

No GPU is needed: nvcc makes PTX and ptxas the machine code; nvdisasm (of a CUDA toolkit, or of
Triton's wheel) shows the instructions.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sysconfig
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch.utils import cpp_extension

from .datafile import path_of, write_json

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("80", "90", "100")
REGISTERS, GRAIN = 65536, 8  # of a multiprocessor; a thread's are rounded up
THREADS = 2048  # of a multiprocessor of these architectures


@dataclass
class Kernel:
    name: str  # demangled, without its parameters
    architecture: str
    threads: int  # of the largest block it is launched with
    registers: int = 0
    spilled: int = 0  # bytes
    stack: int = 0  # bytes of local memory
    shared: int = 0  # static
    accesses: dict[str, int] = field(default_factory=dict)  # "load 128" -> instructions

    @property
    def occupancy(self) -> float:
        """Of the threads a multiprocessor can hold, as registers allow."""
        each = -(-self.registers // GRAIN) * GRAIN * self.threads
        return min(REGISTERS // each, THREADS // self.threads) * self.threads / THREADS


def find_tool(name: str) -> str | None:
    """nvcc, ptxas or nvdisasm: of a toolkit, else of Triton's wheel."""
    home = cpp_extension.CUDA_HOME
    places = [Path(home) / "bin" / name] if home else []
    places += [Path("/usr/local/cuda/bin") / name]
    triton = importlib.util.find_spec("triton")
    if triton and triton.submodule_search_locations:
        places.append(Path(triton.submodule_search_locations[0]) / "backends/nvidia/bin" / name)
    found = next((str(p) for p in places if p.exists()), None)
    return found or shutil.which(name)


def missing() -> str:
    """Why this cannot run here, or an empty string."""
    absent = [t for t in ("nvcc", "ptxas", "nvdisasm") if find_tool(t) is None]
    return f"{', '.join(absent)} not found" if absent else ""


def run_tool(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:1])} failed:\n{done.stderr[-3000:]}")
    return done.stdout + done.stderr


def _demangle(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    plain = [re.sub(r"^void ", "", n).replace("mmix::", "") for n in done.stdout.splitlines()]
    return [re.match(r"\w+(<[^()]*>)?", n).group(0) for n in plain]  # type: ignore[union-attr]


def accesses_of(sass: str) -> dict[str, int]:
    """Global and local loads and stores by width in bits, of one kernel."""
    counts: dict[str, int] = {}
    for kind, suffixes in re.findall(r"\b(LDGSTS|LDG|STG|LDL|STL)\b((?:\.\w+)*)", sass):
        width = re.search(r"\.(256|128|64|[US]?16|[US]?8)\b", suffixes)
        bits = width.group(1).strip("US") if width else "32"
        place = "local " if kind.endswith("L") else ""
        name = f"{place}{'load' if kind.startswith('LD') else 'store'} {bits}"
        counts[name] = counts.get(name, 0) + 1
    return counts


def inspect(source: Path, architecture: str, folder: Path) -> list[Kernel]:
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
            kernels[header.group(1)].accesses = accesses_of(part)
    return list(kernels.values())


def inspect_all(architectures: tuple[str, ...] = ARCHITECTURES) -> list[Kernel]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
            for architecture in architectures:
                found += inspect(source, architecture, Path(folder))
    return found


def main() -> None:
    reason = missing()
    if reason:
        raise SystemExit(f"the machine code cannot be looked at here: {reason}")
    kernels = inspect_all()
    if importlib.util.find_spec("triton"):
        from . import triton_aot

        kernels += triton_aot.inspect_all()
    heads = f"{'threads':>7}{'regs':>6}{'spill':>7}{'stack':>7}{'occ':>6}"
    print(f"{'kernel':<52}{'arch':<8}{heads}  access")
    for k in sorted(kernels, key=lambda k: (k.name, k.architecture)):
        widths = ", ".join(f"{name}: {n}" for name, n in sorted(k.accesses.items()))
        print(
            f"{k.name:<52}{k.architecture:<8}{k.threads:>7}{k.registers:>6}{k.spilled:>7}"
            f"{k.stack:>7}{k.occupancy:>6.0%}  {widths}"
        )
    rows = [{**asdict(k), "occupancy": k.occupancy} for k in kernels]
    write_json(path_of("sass"), {"rows": rows})
