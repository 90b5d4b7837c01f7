"""The tables of `python -m benchmarks sass`: what the kernels are compiled to, and the plans.

instr: instructions for each 16 bytes that a mixing kernel writes, or for the arithmetic of 16 bytes
of the binary cross-entropy (see loops.py).
"""

from __future__ import annotations

import importlib.util

from tests.machine_code import cuda_kernels, plans


def main() -> None:
    reason = cuda_kernels.missing()
    if reason:
        raise SystemExit(f"the machine code cannot be looked at here: {reason}")
    architectures = {d.architecture for d in plans.DEVICES.values()}
    kernels = cuda_kernels.inspect_all(tuple(sorted(architectures, key=int)))
    compiled = list(kernels)
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
    print("\nin flight: KiB that a multiprocessor asks for at a time, where instr is known")
    heads = f"{'launches':>9}{'blocks':>8}{'threads':>9}{'resident':>10}{'in flight':>11}"
    print(f"{'device':<10}{'op':<13}{'shape':<15}{'dtype':<10}{heads}  kernel")
    for name in plans.DEVICES:
        for p in plans.make(name, compiled):
            flight = "" if p.in_flight is None else f"{p.in_flight / 1024:.0f}"
            shape, dtype = "x".join(map(str, p.shape)), str(p.dtype).removeprefix("torch.")
            print(
                f"{name:<10}{p.op:<13}{shape:<15}{dtype:<10}{p.launches:>9}{p.blocks:>8}"
                f"{p.threads:>9}{p.resident:>10}{flight:>11}  {p.kernel}"
            )
