"""CIFAR-10 and CIFAR-100: pickled batches of Python 2, or binary records."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .files import Layout, find, listed, said
from .kinds import BadData, Split

PIXELS = 3 * 32 * 32
FIVE = tuple(f"data_batch_{k}" for k in range(1, 6))


@dataclass(frozen=True)
class Kind:
    label_key: str  # in a pickled batch
    label_bytes: int  # in front of a binary record: the last one is the label
    train: tuple[str, ...]
    test: str
    subfolders: tuple[str, str]  # pickled, binary
    archives: tuple[str, str]


KINDS = {
    "cifar10": Kind(
        "labels",
        1,
        FIVE,
        "test_batch",
        ("cifar-10-batches-py", "cifar-10-batches-bin"),
        ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
    ),
    "cifar100": Kind(
        "fine_labels",
        2,
        ("train",),
        "test",
        ("cifar-100-python", "cifar-100-binary"),
        ("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
    ),
}


class Dtype:
    """Stands for numpy.dtype in a pickle."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which a byte does not have."""


class Array:
    """Stands for numpy.ndarray in a pickle. NumPy's own takes a state that a file has made up, and
    with it may read memory that is not its own."""

    pixels: np.ndarray | None = None
    what = "an empty array"

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        self.what = f"{dtype.code} of shape {shape}"
        if dtype.code == "u1":
            order = "F" if fortran else "C"
            self.pixels = np.frombuffer(content, np.uint8).reshape(shape, order=order)


def reconstruct(*_: object) -> Array:
    return Array()


# What a pickled array asks for; NumPy 2 has renamed a module.
ALLOWED = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): Dtype,
    ("numpy.core.multiarray", "_reconstruct"): reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): reconstruct,
}


class ArraysOnly(pickle.Unpickler):
    """A pickle can name any function of any module and have it called: a file from the network
    could run what it likes. Here only arrays, and Python's plain types, can be made."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and no batch needs that")
        return ALLOWED[module, name]


def pickled(content: bytes, label_key: str, classes: int, where: Path) -> Split:
    try:
        # Python 2 had no str of Unicode: its strings, the raw pixels among them, are bytes here.
        batch = ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # damaged bytes can be any instruction, and fail in any way
        raise BadData(
            f"{where} must be a pickled batch, but cannot be loaded: {said(error)}"
        ) from None
    data_key, labels_key = b"data", label_key.encode()
    if not isinstance(batch, dict) or data_key not in batch or labels_key not in batch:
        keys = listed(map(repr, batch)) if isinstance(batch, dict) else type(batch).__name__
        raise BadData(f"{where} must have 'data' and '{label_key}', but has {keys}")
    data, labels = batch[data_key], batch[labels_key]
    pixels = data.pixels if isinstance(data, Array) else None
    if pixels is None or pixels.shape[1:] != (PIXELS,):
        what = data.what if isinstance(data, Array) else "none"
        raise BadData(
            f"{where} must have an array of bytes of shape (N, {PIXELS}) as data, but has {what}"
        )
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise BadData(f"{where} must have a list of whole numbers as {label_key}, but has others")
    return Split.checked(pixels.reshape(-1, 3, 32, 32), np.array(labels), classes, where)


def binary(content: bytes, label_bytes: int, classes: int, where: Path) -> Split:
    """Records of one label, or of a coarse and a fine one, and of the pixels."""
    size = label_bytes + PIXELS
    if len(content) % size:
        raise BadData(
            f"{where} must have whole records of {size} bytes, but has {len(content)} bytes: "
            "it is truncated, or of another set"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, size)
    images = rows[:, label_bytes:].reshape(-1, 3, 32, 32)
    return Split.checked(images, rows[:, label_bytes - 1], classes, where)


def read(name: str, folder: Path, classes: int) -> tuple[Split, Split]:
    kind = KINDS[name]
    files = (*kind.train, kind.test)
    python = Layout(kind.subfolders[0], files, kind.archives[0])
    records = Layout(kind.subfolders[1], tuple(f"{f}.bin" for f in files), kind.archives[1])
    layout, place, contents = find(folder, (python, records))
    parts = []
    for file, content in contents.items():
        if layout is python:
            parts.append(pickled(content, kind.label_key, classes, place / file))
        else:
            parts.append(binary(content, kind.label_bytes, classes, place / file))
    *train, test = parts
    images = torch.cat([part.images for part in train])
    return Split(images, torch.cat([part.labels for part in train])), test
