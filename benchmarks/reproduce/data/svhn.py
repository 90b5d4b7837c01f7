"""SVHN, format 2: cropped digits in two MATLAB files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from .files import Layout, find, said
from .kinds import BadData, Split

# The paper's code trains on `train` alone: its load_data.py never names `extra`.
TRAIN, TEST = "train_32x32.mat", "test_32x32.mat"


def split(content: bytes, classes: int, where: Path) -> Split:
    try:
        found = loadmat(io.BytesIO(content), variable_names=("X", "y"))
    except Exception as error:  # damaged bytes fail in any way
        raise BadData(
            f"{where} must be a whole MATLAB file, but cannot be loaded: {said(error)}"
        ) from None
    if missing := {"X", "y"} - found.keys():
        raise BadData(f"{where} must have X and y, but lacks {' and '.join(sorted(missing))}")
    x, y = found["X"], found["y"]
    if x.dtype != np.uint8 or x.shape[:-1] != (32, 32, 3) or y.dtype.kind not in "iuf":
        raise BadData(
            f"{where} must have uint8 X of shape (32, 32, 3, N) and numbers y, "
            f"but has {x.dtype} of shape {x.shape} and {y.dtype}"
        )
    labels = y.reshape(-1).astype(np.int64)
    if (labels == 0).any():
        raise BadData(f"{where} must have labels y from 1 to 10 (the digit 0), but has 0")
    labels[labels == 10] = 0
    return Split.checked(x.transpose(3, 2, 0, 1), labels, classes, where)


def read(folder: Path, classes: int) -> tuple[Split, Split]:
    _, place, contents = find(folder, (Layout("svhn", (TRAIN, TEST)),))
    train, test = (split(contents[file], classes, place / file) for file in (TRAIN, TEST))
    return train, test
