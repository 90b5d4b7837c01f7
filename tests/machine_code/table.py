"""The table of `python -m benchmarks sass`: registers, spills, occupancy, widths of access.

instr: instructions for each 16 bytes that a mixing kernel writes (see loops.py).
"""

from __future__ import annotations

import importlib.util

from tests.machine_code import cuda_kernels


def main() -> None:
    reason = cuda_kernels.missing()
    if reason:
        raise SystemExit(f"the machine code cannot be looked at here: {reason}")
    kernels = cuda_kernels.inspect_all()
    if importlib.util.find_spec("triton"):
        from tests.machine_code import triton_kernels

        kernels += triton_kernels.inspect_all()
    heads = f"{'threads':>7}{'regs':>6}{'spill':>7}{'stack':>7}{'occ':>6}{'instr':>7}"
    print(f"{'kernel':<52}{'arch':<8}{heads}  access")
    for k in sorted(kernels, key=lambda k: (k.name, k.architecture)):
        widths = ", ".join(f"{name}: {n}" for name, n in sorted(k.accesses.items()))
        instructions = "" if k.of_vector is None else f"{k.of_vector:.1f}"
        print(
            f"{k.name:<52}{k.architecture:<8}{k.threads:>7}{k.registers:>6}{k.spilled:>7}"
            f"{k.stack:>7}{k.occupancy:>6.0%}{instructions:>7}  {widths}"
        )
