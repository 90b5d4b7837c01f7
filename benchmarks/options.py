"""Options of the command line. All are checked before anything is measured or written."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError, Namespace
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

import mmix_fast

from . import datafile

DTYPES = {
    str(t).removeprefix("torch."): t
    for t in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}
# command -> an example of its --shapes
SHAPES = {
    "mix": "128x64x32x32,256x4096",
    "cross_entropy": "512x21841",
    "linear": "4096x768x21841",
    "sharded": "256x128x100000",
}
# command -> what the sizes of a shape are, where their number is fixed
SIZES = {"cross_entropy": "BxC", "linear": "NxDxC", "sharded": "NxDxC"}


class BadOption(ValueError):
    """The message says what was expected and what was given."""


def device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise ArgumentTypeError(f"must be cpu, cuda or cuda:N, got {text!r}")
    number = int(text.partition(":")[2] or 0)
    if text != "cpu" and number >= torch.cuda.device_count():
        raise ArgumentTypeError(
            f"{text} is not there: torch {torch.__version__} finds {torch.cuda.device_count()} "
            "CUDA devices, so take --device cpu"
        )
    return text


def dtypes(text: str) -> tuple[torch.dtype, ...]:
    names = text.split(",")
    for name in names:
        if name not in DTYPES:
            raise ArgumentTypeError(
                f"must be of {', '.join(DTYPES)}, separated by commas, got {name!r}"
            )
    return tuple(DTYPES[name] for name in names)


def shapes(text: str) -> tuple[tuple[int, ...], ...]:
    found = []
    for part in text.split(","):
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", part):
            raise ArgumentTypeError(
                "must be shapes of two dimensions or more, as in 128x64x32x32,256x4096, "
                f"got {part!r}"
            )
        found.append(tuple(map(int, part.split("x"))))
    return tuple(found)


@dataclass(frozen=True)
class Options:
    device: str = "cpu"
    backend: str | None = None
    dtypes: tuple[torch.dtype, ...] | None = None  # None: the default of the command
    shapes: tuple[tuple[int, ...], ...] | None = None
    quick: bool = False
    json: Path | None = None

    @property
    def whole(self) -> bool:
        """True if no option narrows the run, so that it may replace the committed data file."""
        return self == Options(device=self.device, json=self.json)

    def target(self, name: str) -> Path | None:
        """The data file to write, or None to show the table only."""
        if self.json:
            return self.json / f"{name}.json" if self.json.is_dir() else self.json
        return datafile.path_of(name, self.device) if self.whole else None

    def chosen_backend(self) -> AbstractContextManager[None]:
        return mmix_fast.use_backend(self.backend) if self.backend else nullcontext()


def checked(name: str, arguments: Namespace) -> Options:
    """The options of a command, after the checks that need several of them."""
    options = Options(
        arguments.device,
        arguments.backend,
        getattr(arguments, "dtype", None),
        getattr(arguments, "shapes", None),
        arguments.quick,
        arguments.json,
    )
    sizes = SIZES.get(name, "")
    if sizes and any(len(s) != sizes.count("x") + 1 for s in options.shapes or ()):
        raise BadOption(f"--shapes of {name} must be {sizes}, as in {SHAPES[name]}")
    if name == "sharded" and options.device != "cpu":
        raise BadOption(f"--device of sharded must be cpu, got {options.device}")
    if options.json and (name == "all") != options.json.is_dir():
        kind = "a folder that exists" if name == "all" else "a file's name, not a folder's"
        raise BadOption(f"--json of {name} must be {kind}, got {options.json}")
    try:
        with options.chosen_backend():  # raises if the backend does not serve the device
            x = torch.zeros(2, 2, device=options.device)
            mmix_fast.mix(x, torch.arange(2, device=x.device), 0.5)
    except (RuntimeError, ValueError) as error:
        raise BadOption(f"--backend: {error}") from None
    target = options.target(name)
    if target and name != "all":
        datafile.check_writable(target)
    return options
