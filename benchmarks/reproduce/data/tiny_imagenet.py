"""Tiny-ImageNet: 200 classes of JPEG images of 64x64, in folders or in their .zip."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from .files import check_folder, listed, nothing_found, said
from .kinds import BadData, Split
from .tree import Folder, Zip

TOP, SIDE = "tiny-imagenet-200", 64
WNIDS, ANNOTATIONS = PurePosixPath("wnids.txt"), PurePosixPath("val/val_annotations.txt")
BLOCK = 1000  # files that are held in memory before they are decoded


def locate(folder: Path) -> Folder | Zip:
    check_folder(folder)
    for place in (folder / TOP, folder):
        if (place / WNIDS).is_file():
            return Folder(place)
    if (folder / f"{TOP}.zip").is_file():
        return Zip(folder / f"{TOP}.zip", TOP)
    raise nothing_found(folder, (f"{TOP}/ with wnids.txt", f"{TOP}.zip"))


def images_below(files: Folder | Zip, folder: str) -> list[PurePosixPath]:
    """Hidden files are left out: macOS puts one beside each file that it copies."""
    return [
        name
        for name in files.below(folder)
        if name.suffix.lower() in (".jpeg", ".jpg") and not name.name.startswith(".")
    ]


def by_folder(files: Folder | Zip, names: list[PurePosixPath], index: dict[str, int]) -> list[int]:
    """The label of each image from the folder of its class, at whatever depth."""
    labels = []
    for name in names:
        found = [index[part] for part in name.parts if part in index]
        if not found:
            raise BadData(f"{files.root / name} must be in a folder of a class of {WNIDS}")
        labels.append(found[0])
    return labels


def by_annotations(
    files: Folder | Zip, names: list[PurePosixPath], index: dict[str, int]
) -> list[int]:
    """The label of each image from val_annotations.txt: name, class and a box in each line."""
    path = files.root / ANNOTATIONS
    noted = {}
    for number, line in enumerate(files.read(ANNOTATIONS).decode(errors="replace").splitlines(), 1):
        name, _, rest = line.partition("\t")
        if (wnid := rest.partition("\t")[0]) not in index:
            raise BadData(f"{path} must have a class of {WNIDS} in line {number}, but has {line!r}")
        noted[name] = index[wnid]
    there = {name.name for name in names}
    if missing := noted.keys() - there:
        raise BadData(f"{path} must name files that are there, but {listed(missing)} are missing")
    if unnamed := there - noted.keys():
        raise BadData(f"{path} must name all images of val, but leaves out {listed(unnamed)}")
    return [noted[name.name] for name in names]


def decoded(content: bytes, where: Path) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.size != (SIDE, SIDE):  # known before the pixels are decoded
                width, height = image.size
                raise BadData(
                    f"{where} must be of {SIDE}x{SIDE} pixels, but is of {width}x{height}"
                )
            return np.asarray(image.convert("RGB"))  # some are grey
    except BadData:
        raise
    except Exception as error:  # damaged bytes fail in any way
        raise BadData(
            f"{where} must be a whole JPEG image, but is damaged: {said(error)}"
        ) from None


def split(files: Folder | Zip, names: list[PurePosixPath], labels: list[int]) -> Split:
    images = torch.empty(len(names), 3, SIDE, SIDE, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(names), BLOCK):
            block = names[start : start + BLOCK]
            # Read here, decoded in threads: closing a member of a .zip is not thread-safe.
            contents = [files.read(name) for name in block]
            pixels = pool.map(decoded, contents, [files.root / name for name in block])
            for k, one in enumerate(pixels, start):
                images[k] = torch.from_numpy(one.copy()).permute(2, 0, 1)
    return Split(images, torch.tensor(labels))


def read(folder: Path, classes: int) -> tuple[Split, Split]:
    files = locate(folder)
    wnids = set(files.read(WNIDS).decode(errors="replace").split())
    if len(wnids) != classes:
        raise BadData(f"{files.root / WNIDS} must list {classes} classes, but lists {len(wnids)}")
    index = {wnid: label for label, wnid in enumerate(sorted(wnids))}
    train, val = images_below(files, "train"), images_below(files, "val")
    train_labels = by_folder(files, train, index)
    labelled = set(train_labels)
    if missing := [wnid for wnid, label in index.items() if label not in labelled]:
        raise BadData(
            f"{files.root / 'train'} must have images of all classes, but lacks {listed(missing)}"
        )
    if not val:
        raise BadData(f"{files.root / 'val'} must have images, but has none")
    # Many have sorted val into folders of classes, and some have dropped its annotations.
    label_val = by_annotations if ANNOTATIONS in files.below("val") else by_folder
    return split(files, train, train_labels), split(files, val, label_val(files, val, index))
