"""The options of `python -m benchmarks reproduce`; nothing slow is imported here."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

from .. import options
from .settings import BATCH, METHODS, NETWORKS, RATE, RECIPES

AMP = ("none", "bfloat16", "float16")
HELP = "the paper's training at its own scale, on your files of its image sets"
DESCRIPTION = f"""{HELP}. Nothing is downloaded. Each run has a folder of its own,
SET-NETWORK-METHOD-seedN, with config.json, log.csv, checkpoint.pt and result.json; `report` makes a
table and a picture of them. Several processes or GPUs: torchrun --nproc-per-node N -m benchmarks
reproduce ...; they share each batch."""


def number(kind: type, least: float, inclusive: bool = True) -> Callable[[str], float]:
    """A parser of a number of the kind, int or float, from (or, not inclusive, above) `least`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not (least <= value if inclusive else least < value) or value == float("inf"):
            what = "a whole number" if kind is int else "a number"
            raise ArgumentTypeError(
                f"must be {what} {'from' if inclusive else 'above'} {least}, got {text!r}"
            )
        return value

    return parse


def seeds(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise ArgumentTypeError(
            f"must be different whole numbers from 0, as in 0,1,2, got {text!r}"
        )
    return found


def methods(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in METHODS:
            raise ArgumentTypeError(f"must be of {', '.join(METHODS)}, got {name!r}")
    if len(set(names)) < len(names):
        raise ArgumentTypeError(f"must be different methods, got {text!r}")
    return names


def layers(text: str) -> tuple[str, ...]:
    names = tuple("" if name == "input" else name for name in text.split(","))
    if len(set(names)) < len(names):
        raise ArgumentTypeError(f"must be different layers, as in input,layer1, got {text!r}")
    return names


def add_options(parser: ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True, metavar="SET")
    for name in RECIPES:
        add_training(what.add_parser(name, help=f"train on {name}", description=DESCRIPTION))
    report = what.add_parser("report", help="a table and a picture of the runs in a folder")
    report.add_argument("folder", type=Path, help="the folder of the runs")


def add_training(sub: ArgumentParser) -> None:
    add = sub.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="where the set's files are")
    add(
        "--network",
        choices=NETWORKS,
        default="preactresnet18",
        metavar="NETWORK",
        help=f"of {', '.join(NETWORKS)}; default: %(default)s",
    )
    add(
        "--method",
        type=methods,
        default=("manifold-mixup",),
        help=f"of {', '.join(METHODS)}; several by comma; default: manifold-mixup",
    )
    add("--seeds", type=seeds, default=(0,), help="such as 0,1,2; default: 0")
    add("--epochs", type=number(int, 1), help="default: the paper's; drops of lr in proportion")
    add("--alpha", type=number(float, 0, False), help="of Beta(alpha, alpha); default: the paper's")
    add("--layers", type=layers, help="to mix, such as input,layer1,layer2; default: the paper's")
    add("--batch", type=number(int, 1), default=BATCH, help="of all processes; default: 100")
    add("--lr", type=number(float, 0, False), default=RATE, help="default: %(default)s")
    add("--width", type=number(int, 1), help="channels of the first stage; default: the paper's")
    add("--device", type=options.device, default="cpu", help="cpu, cuda or cuda:N")
    add("--amp", choices=AMP, default="none", metavar="DTYPE", help=f"of {', '.join(AMP)}")
    add("--compile", action="store_true", help="torch.compile the network")
    add("--channels-last", action="store_true", help="keep images and weights channels-last")
    add("--out", type=Path, default=Path("runs"), help="the folder of the runs; default: runs")
    add("--resume", action="store_true", help="go on after the checkpoints in --out")
    add("--robustness", action="store_true", help="also deformations, FGSM and PGD at the end")
    add("--steps", type=number(int, 1), help="a trial: so many steps, the time of all; no files")
