"""What the Triton kernels are compiled to, for the launches that real shapes get.

Triton compiles ahead of time, without a GPU.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from mmix_fast.triton import launch
from tests.machine_code.reading import THREADS, Kernel, accesses_of, run_tool, triton_tools
from tests.machine_code.triton_cases import CASES

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
AMD_REGISTERS = 4 * 512 * 64  # of a compute unit: SIMDs * registers of a lane * lanes
TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.uint8: "*u8",
}


@dataclass
class TritonKernel(Kernel):
    vector: int = 0  # bits of the widest access that the case's strides allow; 0 without a tile

    @property
    def occupancy(self) -> float:
        if not self.architecture.startswith("gfx"):
            return super().occupancy
        fitting = AMD_REGISTERS // (-(-self.registers // 8) * 8 * self.threads)
        return min(fitting, THREADS // self.threads) * self.threads / THREADS


@cache
def launches(case: str) -> tuple[launch.Launch, ...]:
    return tuple(CASES[case]())


def _specialised(one: launch.Launch) -> tuple[dict[str, Any], dict[Any, Any], dict[Any, Any]]:
    """(signature, constants, attributes) as Triton's own launcher derives them from arguments."""
    constants: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}

    def kind(value: Any, path: tuple[int, ...], constant: bool = False) -> Any:
        if isinstance(value, tuple):
            kinds = [kind(field, (*path, place)) for place, field in enumerate(value)]
            return type(value)(*kinds)  # type: ignore[arg-type]
        if isinstance(value, tl.constexpr):
            value, constant = value.value, True
        if constant or value is None or (isinstance(value, int) and value == 1):
            constants[path] = value
            return "constexpr"
        if isinstance(value, float):
            return "fp64"
        if isinstance(value, torch.Tensor):  # torch allocates at multiples of 512 bytes
            name, multiple = TYPES[value.dtype], value.storage_offset() * value.element_size()
        else:
            name, multiple = "i32" if -(2**31) <= value < 2**31 else "i64", value
        if multiple % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return name

    signature = {
        parameter.name: kind(one.args[parameter.name], (place,), parameter.is_constexpr)
        for place, parameter in enumerate(one.kernel.params)
    }
    return signature, constants, attributes


def compile_launch(one: launch.Launch, arch: str) -> CompiledKernel:
    signature, constants, attributes = _specialised(one)
    source = ASTSource(one.kernel, signature, constants, attributes)
    return triton.compile(source, target=TARGETS[arch], options=one.options)


def _tool(name: str, *args: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return run_tool(str(triton_tools() / name), *args, file.name)


def sass(kernel: CompiledKernel) -> str:
    return _tool("nvdisasm", "-c", cubin=kernel.asm["cubin"])


def _nvidia(row: TritonKernel, kernel: CompiledKernel) -> None:
    usage = _tool("cuobjdump", "--dump-resource-usage", cubin=kernel.asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    # No kernel has local arrays or calls functions, so everything on the stack was spilled.
    row.registers, row.spilled = map(int, found.groups())
    row.stack, row.shared = row.spilled, kernel.metadata.shared
    row.accesses = accesses_of(sass(kernel))


AMD_BITS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32, "short": 16, "ushort": 16}


def _amd(row: TritonKernel, kernel: CompiledKernel) -> None:
    text = kernel.asm["amdgcn"]

    def number(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", text)
        return int(found[1]) if found else 0

    row.registers, row.spilled = number("vgpr_count"), 4 * number("vgpr_spill_count")
    row.stack = number("private_segment_fixed_size")
    row.shared = number("group_segment_fixed_size")
    found = re.findall(r"\b(?:global|buffer|flat)_(load|store)_(\w+)", text)
    bits = (
        (kind, next((b for k, b in AMD_BITS.items() if w.startswith(k)), 8)) for kind, w in found
    )
    row.accesses = dict(Counter(f"{kind} {width}" for kind, width in bits))


def inspect(case: str, architecture: str) -> list[TritonKernel]:
    """A row for each launch of the case. One that Triton has not cached takes about a second."""
    target, rows = TARGETS[architecture], []
    for one in launches(case):
        kernel = compile_launch(one, architecture)
        main, vector = one.args.get("x_ptr"), one.args.get("VEC", 0)
        if "logits" in one.args:
            main, vector = one.args["logits"].ptr, one.args["TILE"].VEC.value
        name = f"{one.kernel.fn.__name__}: {case}"
        row = TritonKernel(name, architecture, target.warp_size * one.warps)
        row.vector = 0 if main is None else 8 * main.element_size() * vector
        (_amd if target.backend == "hip" else _nvidia)(row, kernel)
        rows.append(row)
    return rows


def inspect_all() -> list[TritonKernel]:
    return [row for case in CASES for arch in TARGETS for row in inspect(case, arch)]
