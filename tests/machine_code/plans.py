"""What the launch plans of csrc/cuda make of a device: launches, resident blocks, bytes in flight.

The emulator gives the plans, without running them. The registers are those of the machine code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.cuda_emulation import emulation
from tests.machine_code import cuda_kernels
from tests.machine_code.reading import Kernel


@dataclass(frozen=True)
class Device:
    architecture: str
    multiprocessors: int
    shared: int  # bytes that a block may have
    reserved: int = 1024  # bytes of shared memory for each block
    threads: int = 2048  # of a multiprocessor
    blocks: int = 32  # of a multiprocessor

    def resident(self, kernel: Kernel, threads: int, shared: int) -> int:
        """The blocks of a kernel that a multiprocessor runs at the same time."""
        by_registers = 65536 // (-(-kernel.registers // 8) * 8 * threads)
        by_shared = (self.shared + self.reserved) // max(1, shared + self.reserved)
        return min(by_registers, by_shared, self.threads // threads, self.blocks)


DEVICES = {
    "T4": Device("75", 40, 64 * 1024, reserved=0, threads=1024, blocks=16),
    "A100": Device("80", 108, 163 * 1024),
    "H100": Device("90", 132, 227 * 1024),
    "B200": Device("100", 148, 227 * 1024),
    "RTX 5090": Device("120", 170, 99 * 1024, threads=1536, blocks=24),
}
OPS = ("mix_", "mix", "mix_batch_", "loss", "binary loss")
SHAPES = (
    ((64, 8192), torch.float32),
    ((256, 1000), torch.float32),
    ((8192, 512), torch.bfloat16),
    ((16384, 768), torch.bfloat16),
    ((8192, 1000), torch.float32),
    ((1024, 21841), torch.float32),
)


@dataclass(frozen=True)
class Plan:
    device: str
    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    launches: int
    kernel: str  # of the first launch
    blocks: int
    threads: int
    resident: int  # blocks of a multiprocessor, of those that there are
    in_flight: int | None  # bytes that a multiprocessor asks for at a time; None: not counted


def _call(op: str, x: torch.Tensor) -> Callable[[], object]:
    ops = getattr(torch.ops, emulation.NAMESPACE)
    perm, lam = torch.arange(len(x)), torch.tensor(0.3)
    y = torch.zeros(len(x), dtype=torch.int64)
    calls = {
        "mix_": lambda: ops.mix_(x, perm, lam, 0),
        "mix": lambda: ops.mix(x, perm, lam, 0, False),
        "mix_batch_": lambda: ops.mix_batch_(x, y, perm, lam, 10, 0.0, -100, torch.float32),
        "loss": lambda: ops.cross_entropy(
            x, y, perm, None, lam, None, None, -100, "mean", 0.0, 0.0, 0.0, 0, 0, 1.0
        ),
        "binary loss": lambda: ops.binary_cross_entropy(
            x, y, perm, None, lam, None, None, "mean", 0.0, None, 1.0
        ),
    }
    return calls[op]


def make(name: str, kernels: list[Kernel]) -> list[Plan]:
    """The plans for one of DEVICES, with the kernels of its architecture."""
    emulator, device = emulation.load(), DEVICES[name]
    known = {k.name: k for k in kernels if k.architecture == f"sm_{device.architecture}"}
    emulator.set_device(device.multiprocessors, device.shared, int(device.architecture) >= 90)
    emulator.only_plan(True)
    plans = []
    try:
        for shape, dtype in SHAPES:
            for op in OPS:
                x = torch.empty(shape, dtype=dtype)
                emulator.launched()
                _call(op, x)()
                first, *more = emulator.launched()
                kernel = known[cuda_kernels.short_name(first.name)]
                fit = device.resident(kernel, first.threads, first.shared)
                resident = min(fit, -(-first.blocks // device.multiprocessors))
                in_flight = None
                if kernel.of_vector is not None:  # a slab's copies wait in shared memory
                    of_block = 16 * kernel.loads * first.threads or first.shared
                    partners = bool(kernel.loads) and op != "binary loss"
                    share = (1 + partners) * x.nbytes // device.multiprocessors
                    in_flight = min(resident * of_block, share)
                plans.append(
                    Plan(
                        name,
                        op,
                        shape,
                        dtype,
                        1 + len(more),
                        kernel.name,
                        first.blocks,
                        first.threads,
                        resident,
                        in_flight,
                    )
                )
    finally:
        emulator.only_plan(False)
        emulator.set_device()
    return plans
