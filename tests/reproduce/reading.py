"""What the tests of the readers share."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks.reproduce.data import BadData, Split, read
from tests.support.image_files import (
    write_cifar10,
    write_cifar100,
)

CIFAR = {"cifar10": write_cifar10, "cifar100": write_cifar100}
TINY = "tiny-imagenet-200"


def assert_same(found: Split, written: Split) -> None:
    assert found.images.dtype == torch.uint8 and found.labels.dtype == torch.int64
    assert found.images.is_contiguous()
    assert torch.equal(found.images, written.images) and torch.equal(found.labels, written.labels)


def assert_near(found: Split, written: Split) -> None:
    """JPEG changes a plain color by a few of 255."""
    assert found.images.dtype == torch.uint8 and found.images.shape == written.images.shape
    assert (found.images.int() - written.images.int()).abs().max() <= 4
    assert torch.equal(found.labels, written.labels)


def refused(name: str, folder: Path, message: str) -> None:
    with pytest.raises(BadData) as error:
        read(name, folder)
    assert re.search(message, str(error.value)), str(error.value)
    assert "\n" not in str(error.value) and str(error.value).count(" must ") == 1


def cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
