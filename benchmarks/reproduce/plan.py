"""What a command asks for, checked before anything is trained or written."""

from __future__ import annotations

from argparse import Namespace

import torch

from ..options import BadOption
from .data import ImageSet
from .folder import RunFolder
from .networks import layer_names
from .settings import NETWORKS, Config, method_of, schedule_of


def configs(arguments: Namespace, images: ImageSet) -> list[Config]:
    """One for each run, checked."""
    found = [
        config_of(arguments, images, method, seed)
        for method in arguments.method
        for seed in arguments.seeds
    ]
    for option in ("alpha", "layers"):
        if getattr(arguments, option) and not any(getattr(config, option) for config in found):
            raise BadOption(f"--{option} has no meaning for --method {','.join(arguments.method)}")
    for config in found:
        known = layer_names(config)
        for name in config.layers:
            if name not in known:
                stages = ", ".join(n for n in known if "." not in n and n)
                raise BadOption(f"--layers must be of input, {stages} or parts, got {name!r}")
    return found


def config_of(arguments: Namespace, images: ImageSet, name: str, seed: int) -> Config:
    method = method_of(arguments.what, arguments.network, name)
    return Config(
        dataset=arguments.what,
        network=arguments.network,
        method=name,
        alpha=method.alpha and (arguments.alpha or method.alpha),
        layers=method.layers and (arguments.layers or method.layers),
        seed=seed,
        epochs=arguments.epochs or schedule_of(arguments.what, arguments.network).epochs,
        batch=arguments.batch,
        lr=arguments.lr,
        width=arguments.width or NETWORKS[arguments.network].width,
        amp=arguments.amp,
        train_images=len(images.train.labels),
        test_images=len(images.test.labels),
    )


def check(arguments: Namespace, images: ImageSet, world: int) -> None:
    """What argparse cannot check: it needs several options, or the images."""
    count = len(images.train.labels)
    if arguments.batch > count:
        raise BadOption(
            f"--batch must be at most the {count} training images, got {arguments.batch}"
        )
    if arguments.batch % world:
        raise BadOption(
            f"--batch must be a multiple of the {world} processes, got {arguments.batch}"
        )
    if arguments.steps and arguments.resume:
        raise BadOption("--steps is a trial of its own: it takes no --resume")
    if arguments.amp == "float16" and arguments.device == "cpu":
        raise BadOption("--amp float16 needs a GPU: take bfloat16 on the CPU")


def checkpoints(
    arguments: Namespace, runs: list[Config], device: torch.device
) -> dict[Config, int]:
    """How many epochs are done, of each run that has a checkpoint. Everything in the way is refused
    before any training: a folder that exists, or with --resume one that cannot be gone on with."""
    done = {}
    for config in runs:
        folder = RunFolder(arguments.out / config.name)
        if not arguments.resume and folder.path.exists():
            raise BadOption(f"{folder.path} exists: give --resume to go on, or another --out")
        # Of several runs, those that had not begun yet begin now.
        if arguments.resume and (folder.path.exists() or len(runs) == 1):
            done[config] = folder.read(config, device)["epoch"]
    if arguments.resume and not done:
        raise BadOption(f"--resume needs a checkpoint, but {arguments.out} has none of these runs")
    return done
