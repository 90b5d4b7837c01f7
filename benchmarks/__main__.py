"""The command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

PROGRAM = "python -m benchmarks"
try:
    from . import options, paper
    from .commands import COMMANDS, MEASURING
    from .datafile import BadFile
    from .problem import THREADS
    from .reproduce import arguments as reproduce
    from .verify import WrongResult
except ModuleNotFoundError as error:  # an installation without the tools of the dev extra
    if not error.name or error.name.startswith(("benchmarks", "mmix_fast", "torch")):
        raise
    missing = error.name.partition(".")[0]
    print(
        f"{PROGRAM} needs {missing} and other tools, which are not installed: in a clone, "
        'pip install -e ".[dev]" --no-build-isolation',
        file=sys.stderr,
    )
    sys.exit(2)


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}\n")


def add_options(sub: argparse.ArgumentParser, name: str) -> None:
    sub.add_argument("--device", type=options.device, default="cpu", help="cpu, cuda or cuda:N")
    sub.add_argument("--backend", help="one of mmix_fast.backends(); default: chosen by dispatch")
    sub.add_argument("--quick", action="store_true", help="fewer shapes, dtypes and rounds")
    file = "a folder for the data files" if name == "all" else "the data file to write"
    default = "default: benchmarks/results/ for a run without options, else none"
    sub.add_argument("--json", type=Path, metavar="PATH", help=f"{file}; {default}")
    if name not in ("losses", "step"):  # their cases set the dtype
        sub.add_argument("--dtype", type=options.dtypes, help="such as float32,bfloat16")
    if name in options.SHAPES:
        sub.add_argument("--shapes", type=options.shapes, help=f"such as {options.SHAPES[name]}")


def parser() -> Parser:
    top = Parser(prog=PROGRAM, description="measure mmix_fast")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        if name in MEASURING or name == "all":
            add_options(sub, name)
        if name == "check":
            sub.add_argument("--update", action="store_true", help="store a new run instead")
        if name == "paper":
            parts = ", ".join(paper.PARTS)
            sub.add_argument("part", nargs="*", type=paper.part, help=f"{parts}; default: all")
            sub.add_argument("--full", action="store_true", help="more seeds")
        if name == "reproduce":
            reproduce.add_options(sub)
    return top


def main(words: list[str] | None = None) -> int:
    top = parser()
    arguments = top.parse_args(words)
    if arguments.command != "reproduce":  # it measures nothing: torch's own choice, or torchrun's
        torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    try:
        return COMMANDS[arguments.command].run(arguments) or 0
    except (options.BadOption, BadFile) as error:
        top.error(str(error))
    except WrongResult as error:
        top.exit(1, f"{top.prog}: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
