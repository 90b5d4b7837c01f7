"""Counts the instructions that a mixing kernel executes for each element in its usual loops.

The machine code of a loop is all that runs for most of the elements: what comes before it is done
once for each thread, and what is left after it are a few rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

VECTOR = 16  # bytes


@dataclass(frozen=True)
class Loop:
    """An innermost loop, and its 16-byte accesses."""

    instructions: int
    loads: int  # into registers
    copies: int  # from global to shared memory
    stores: int


def innermost_loops(sass: str) -> list[Loop]:
    """The loops of one kernel without a loop inside, from ``nvdisasm -c``."""
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in sass.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label.group(1)] = len(code)
        elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
            code.append(instruction.group(1))
    spans = []
    for end, text in enumerate(code):
        jump = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", text)
        if jump and labels.get(jump.group(1), end + 1) <= end:
            spans.append((labels[jump.group(1)], end + 1))
    inner = [a for a in spans if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    found = []
    for start, end in inner:
        body = code[start:end]
        count = lambda pattern, body=body: sum(bool(re.search(pattern, t)) for t in body)  # noqa: E731
        wide = (count(rf"\b{name}\b\S*\.128\b") for name in ("LDG", "LDGSTS", "STG"))
        found.append(Loop(end - start, *wide))
    return found


def of_vector(loops: list[Loop]) -> float | None:
    """Instructions for each vector that is mixed; None for a kernel that writes no vectors.

    A kernel reads a vector and its partner, mixes and writes in one loop, or it reads in one and
    writes in another. Remainders and rare cases have loops too, which take more instructions.
    """
    writing = [loop for loop in loops if loop.stores]
    if not writing:
        return None
    best = min(writing, key=lambda loop: loop.instructions / loop.stores)
    cost = best.instructions / best.stores
    return cost if best.loads else cost + reading(loops)[0]


def of_arithmetic(sass: str, exponentials: int) -> int | None:
    """Instructions of the shortest straight code with as many exponentials: of a vector's elements.

    For a loss without sums over rows, whose loop over pieces is not innermost.
    """
    blocks: list[list[str]] = [[]]
    for line in sass.splitlines():
        if re.match(r"\.L_x_\d+:", line):
            blocks.append([])
        elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
            blocks[-1].append(instruction.group(1))
            if re.search(r"\b(BRA|EXIT)\b", instruction.group(1)):
                blocks.append([])
    count = lambda block: sum("MUFU.EX2" in text for text in block)  # noqa: E731
    return min((len(b) for b in blocks if count(b) == exponentials), default=None)


def reading(loops: list[Loop]) -> tuple[float, int]:
    """Of the loop that reads: instructions for each vector mixed; loads in flight to registers."""
    copying = [(loop.instructions / loop.copies, 0) for loop in loops if loop.copies]
    loading = [(2 * loop.instructions / loop.loads, loop.loads) for loop in loops if loop.loads > 1]
    return min(copying or loading)
