"""The README's table of six rows and its picture of speed; `make demo` shows its rows likewise."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib import pyplot as plt

from . import tables
from .gpu.report import Measured
from .plots import png
from .reproduce.published import Published
from .rows import Row, bytes_text, number_text, rows

# The names that the plain PyTorch code of an op has in the data files.
PLAIN = ("eager", "two terms", "original", "naive")
COMPILED = "compiled"
MIX, LOSS = "`mix`, forward and backward", "`mixed_cross_entropy`, forward and backward"
# (data file, op, dtype, shape, what the README calls it), in the README's order. "gpu" is the data
# file of `make gpu`.
SELECTED = (
    ("mix", "mix_ forward", "float32", "128x64x32x32", "`mix_`, forward"),
    ("mix", "mix forward+backward", "float32", "256x4096", MIX),
    ("cross_entropy", "cross-entropy in place", "float32", "512x21841", LOSS),
    ("cross_entropy", "cross-entropy fresh gradient", "float32", "256x1000", LOSS),
    ("step", "step of PreActResNet-18", "float32", "64x3x32x32", "training step, PreActResNet-18"),
    ("gpu", "loss", "bfloat16", "8192x32000", LOSS),
)
# The run of the paper that the README names: set, network, and the methods in order.
NAMED = {"dataset": "cifar10", "network": "preactresnet18"}
NAMED_METHODS = (("erm", None), ("input-mixup", 1.0), ("manifold-mixup", 2.0))


@dataclass(frozen=True)
class Line:
    """One op at one shape: our time, and how many times as long others take."""

    op: str
    size: str  # dtype and shape
    machine: str
    us: float
    plain: float | None
    compiled: float | None
    memory: str  # peak of ours / of plain PyTorch; "" if not measured


def times(value: float | None) -> str:
    """A ratio as it is good for: of two digits."""
    if value is None:
        return ""
    return f"{value:.0f}x" if value >= 9.5 else f"{value:.1f}x"


def line_of(row: Row, machine: str = "", op: str = "") -> Line:
    plain = next((row.records[name] for name in PLAIN if name in row.records), None)
    compiled = row.records.get(COMPILED)
    ratio = lambda record: record["extra_info"]["ratio"] if record else None  # noqa: E731
    memory = ""
    if plain:
        peaks = [r["extra_info"]["peak_bytes"] for r in (row.ours, plain)]
        memory = " / ".join(map(bytes_text, peaks))
    size = f"{row.dtype} {row.shape}"
    return Line(op or row.op, size, machine, row.us, ratio(plain), ratio(compiled), memory)


def gpu_line(found: Measured, machine: str, op: str) -> Line:
    ours = found.us("cuda")
    if ours is None:
        raise ValueError(f"{found.facts['title']} must have a time of the backend cuda, has none")
    plain = next((us for name in PLAIN if (us := found.us(name))), None)
    compiled = found.us(COMPILED)
    facts = found.facts
    size = f"{facts['dtype']} {'x'.join(map(str, facts['shape']))}"
    ratio = lambda us: us and us / ours  # noqa: E731
    return Line(op, size, machine, ours, ratio(plain), ratio(compiled), "")


def cpu_of(machine: dict) -> str:
    """The processor and its vector instructions."""
    return f"{machine['cpu'].get('brand_raw', machine['machine'])}, {machine['capability']}"


def machine_of(data: dict) -> str:
    machine = data["machine_info"]
    return f"{cpu_of(machine)}, {machine['threads']} threads"


def selected(data: dict[str, dict], gpu: dict | None) -> list[Line]:
    """The README's rows that the data files have; those of a GPU only where one was measured."""
    found = []
    for name, op, dtype, shape, title in SELECTED:
        if name == "gpu":
            for facts in gpu["rows"] if gpu else []:
                key = (facts.get("op"), facts.get("dtype"), facts.get("shape"))
                if key == (op, dtype, [int(size) for size in shape.split("x")]):
                    measured = Measured(facts, gpu["copy_gb_per_s"])
                    found.append(gpu_line(measured, gpu["machine"]["gpu"], title))
            continue
        for row in rows(data[name]["benchmarks"]):
            if (row.op, row.dtype, row.shape, row.cache) == (op, dtype, shape, "warm"):
                found.append(line_of(row, machine_of(data[name]), title))
    return found


def table(lines: list[Line]) -> str:
    head = ["", "on", "plain PyTorch", "`torch.compile`", "peak memory, ours / plain"]
    body = [
        [f"{i.op}, {i.size}", i.machine, times(i.plain), times(i.compiled), i.memory] for i in lines
    ]
    return tables.markdown_table(head, body)


def paper(published: Published) -> str:
    """What the paper found, in a sentence."""
    rows = [
        published.result(NAMED | {"method": method, "alpha": alpha})
        for method, alpha in NAMED_METHODS
    ]
    plain, inputs, manifold = (f"{row['test_error']:.2f} %" for row in rows)
    return (
        f"In the [paper]({published.source['url']}) (Table {rows[0]['table']}) the test error of "
        f"PreActResNet-18 on CIFAR-10 falls from {plain} to {manifold}, and with mixup of the "
        f"inputs alone to {inputs}."
    )


def picture(lines: list[Line]) -> bytes:
    """A pair of bars for each row: the time of plain and of compiled PyTorch over ours."""
    figure, panel = plt.subplots(figsize=(8, 0.5 * len(lines) + 0.9))
    for shift, color, label, ratios in (
        (-0.2, "C0", "plain PyTorch", [line.plain for line in lines]),
        (0.2, "C1", "torch.compile", [line.compiled for line in lines]),
    ):
        places = [k + shift for k, ratio in enumerate(ratios) if ratio]
        shown = [ratio for ratio in ratios if ratio]
        bars = panel.barh(places, shown, 0.4, color=color, label=label)
        panel.bar_label(bars, [times(ratio) for ratio in shown], fontsize=8, padding=2)
    panel.axvline(1, color="black", linewidth=0.8)
    names = [f"{line.op.replace('`', '')}\n{line.size}, {line.machine}" for line in lines]
    panel.set_yticks(range(len(lines)), names, fontsize=8)
    panel.invert_yaxis()
    panel.margins(x=0.1)
    panel.set_xlabel("time of PyTorch / ours (the line: as fast as ours)", fontsize=9)
    panel.legend(fontsize=8, loc="lower right")
    return png(figure)


def in_words(line: Line) -> str:
    """What a row says, as a sentence."""
    others = [("plain PyTorch", line.plain), ("compiled PyTorch", line.compiled)]
    said = " and ".join(f"{who} takes {times(ratio)} as long" for who, ratio in others if ratio)
    return f"{line.op}, {line.size}, takes {number_text(line.us)} us; {said}."
