"""Files of another content than the set has are refused in a sentence."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from benchmarks.reproduce.data import read
from tests.reproduce.reading import CIFAR, TINY, cut, refused
from tests.support.image_files import (
    WNIDS,
    jpeg,
    python2_pickle,
    write_cifar10,
    write_cifar100,
    write_svhn,
    write_tiny_imagenet,
)

# CIFAR


def batch_of(folder: Path, change) -> None:
    """The test batch of CIFAR-10 after a change of its dict."""
    write_cifar10(folder, 20)
    path = folder / "cifar-10-batches-py/test_batch"
    batch = {k.decode(): v for k, v in pickle.loads(path.read_bytes(), encoding="bytes").items()}
    batch.pop("filenames")
    path.write_bytes(python2_pickle(change(batch)))


SHAPE = r"must have an array of bytes of shape \(N, 3072\) as data, but has "
WHOLE = "must have a list of whole numbers as labels, but has others$"
BATCHES = {
    "no dict": (lambda b: [b["labels"]], "must have 'data' and 'labels', but has list$"),
    "labels of CIFAR-100": (
        lambda b: {"data": b["data"], "fine_labels": b["labels"]},
        "must have 'data' and 'labels', but has b'data', b'fine_labels'$",
    ),
    "no data": (lambda b: {"labels": b["labels"]}, "must have 'data' and 'labels', but has b'l"),
    "larger images": (
        lambda b: b | {"data": np.zeros((10, 3 * 64 * 64), np.uint8)},
        SHAPE + r"u1 of shape \(10, 12288\)$",
    ),
    "one image": (lambda b: b | {"data": b["data"][0]}, SHAPE + r"u1 of shape \(3072,\)$"),
    "floats": (lambda b: b | {"data": b["data"] / 255}, SHAPE + r"f8 of shape \(10, 3072\)$"),
    "objects": (
        lambda b: b | {"data": np.array([[None]])},
        SHAPE + r"O8 of shape \(1, 1\)$",
    ),
    "data in a list": (lambda b: b | {"data": [1, 2]}, SHAPE + "none$"),
    "labels in an array": (lambda b: b | {"labels": np.arange(10)}, WHOLE),
    "labels of text": (lambda b: b | {"labels": ["cat"] * 10}, WHOLE),
    "a label too few": (
        lambda b: b | {"labels": b["labels"][1:]},
        "must hold images and a label for each, but holds 10 images and 9 labels$",
    ),
    "no image": (
        lambda b: b | {"data": b["data"][:0], "labels": []},
        "but holds 0 images and 0 labels$",
    ),
    "a class too many": (
        lambda b: b | {"labels": [10, *b["labels"][1:]]},
        "must have labels of 10 classes, 0 to 9, but has 10$",
    ),
    "a negative label": (lambda b: b | {"labels": [-1, *b["labels"][1:]]}, "but has -1$"),
}


@pytest.mark.parametrize("case", BATCHES)
def test_a_batch_of_something_else(tmp_path, case):
    change, message = BATCHES[case]
    batch_of(tmp_path, change)
    refused("cifar10", tmp_path, "cifar-10-batches-py/test_batch .*" + message)


class NoContent:
    """Pickled, it is an array whose content never comes."""

    def __reduce__(self):
        return np.ndarray, ()


def test_an_array_without_content_and_one_with_too_little(tmp_path):
    batch_of(tmp_path, lambda b: b | {"data": NoContent()})
    refused("cifar10", tmp_path, SHAPE + "an empty array$")
    path = tmp_path / "cifar-10-batches-py/test_batch"
    content = python2_pickle({"data": np.zeros((10, 3072), np.uint8), "labels": [0] * 10})
    path.write_bytes(content.replace(b"M\x00\x0c", b"M\x01\x0c", 1))  # 3073 pixels in its shape
    refused("cifar10", tmp_path, "test_batch .* cannot be loaded: cannot reshape array of size")


class Harm:
    """Unpickled without care, it makes a folder."""

    def __init__(self, function, path: Path) -> None:
        self.call = function, (str(path),)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "named"), [(os.mkdir, "posix.mkdir"), (eval, "builtins.eval")], ids=["os", "eval"]
)
@pytest.mark.skipif(os.name != "posix", reason="elsewhere os.mkdir is in another module")
def test_a_pickle_that_calls_a_function_is_not_run(tmp_path, function, named):
    write_cifar100(tmp_path, 4)
    made = tmp_path / "made"
    harm = pickle.dumps({b"data": Harm(function, made)}, protocol=4)
    (tmp_path / "cifar-100-python/train").write_bytes(harm)
    words = (
        f"train must be a pickled batch, but cannot be loaded: it asks for {named}, and no batch"
    )
    refused("cifar100", tmp_path, words)
    assert not made.exists()
    if function is os.mkdir:  # the pickle does what it was made for
        pickle.loads(harm)
        assert made.exists()


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_a_truncated_pickle(tmp_path, keep):
    write_cifar10(tmp_path, 20)
    cut(tmp_path / "cifar-10-batches-py/data_batch_2", keep)
    refused("cifar10", tmp_path, "data_batch_2 must be a pickled batch, but cannot be loaded: ")


def test_truncated_records(tmp_path):
    write_cifar10(tmp_path, 20, binary=True)
    path = tmp_path / "cifar-10-batches-bin/data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    words = (
        "data_batch_2.bin must have whole records of 3073 bytes, but has 12291 bytes: it is trun"
    )
    refused("cifar10", tmp_path, words)


def test_records_of_another_set(tmp_path):
    write_cifar10(tmp_path, 5, binary=True)
    write_cifar100(tmp_path, 6, binary=True)
    shutil.copy(
        tmp_path / "cifar-100-binary/test.bin", tmp_path / "cifar-10-batches-bin/test_batch.bin"
    )
    refused(
        "cifar10", tmp_path, "whole records of 3073 bytes, .* it is truncated, or of another set"
    )


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_a_record_of_a_class_too_many(tmp_path, name, classes):
    CIFAR[name](tmp_path, 20, binary=True)
    (place,) = tmp_path.iterdir()
    (path,) = place.glob("test*")
    content = bytearray(path.read_bytes())
    content[0 if classes == 10 else 1] = classes
    path.write_bytes(content)
    refused(name, tmp_path, rf"{path.name} must have labels of {classes} .*, but has {classes}$")


# SVHN

PIXELS, DIGITS = np.zeros((32, 32, 3, 4), np.uint8), np.array([[1], [2], [10], [9]], np.uint8)
NUMBERS = r"must have uint8 X of shape \(32, 32, 3, N\) and numbers y, but has "
MATRICES = {
    "no y": ({"X": PIXELS}, "must have X and y, but lacks y$"),
    "neither": ({"Z": PIXELS}, "must have X and y, but lacks X and y$"),
    "larger images": (
        {"X": np.zeros((64, 64, 3, 4), np.uint8), "y": DIGITS},
        NUMBERS + r"uint8 of shape \(64, 64, 3, 4\) and uint8$",
    ),
    "floats": ({"X": PIXELS / 255, "y": DIGITS}, NUMBERS + "float64 of .* and uint8$"),
    "one image": ({"X": PIXELS[..., 0], "y": DIGITS}, NUMBERS + r"uint8 of shape \(32, 32, 3\)"),
    "words": ({"X": PIXELS, "y": "four"}, NUMBERS + "uint8 of .* and <U4$"),
    "the digit 0 as 0": (
        {"X": PIXELS, "y": DIGITS % 10},
        r"must have labels y from 1 to 10 \(the digit 0\), but has 0$",
    ),
    "a class too many": ({"X": PIXELS, "y": DIGITS + 2}, "labels of 10 classes, .*, but has 12$"),
    "a label too few": ({"X": PIXELS, "y": DIGITS[1:]}, "but holds 4 images and 3 labels$"),
}


@pytest.mark.parametrize("case", MATRICES)
def test_matrices_of_something_else(tmp_path, case):
    content, message = MATRICES[case]
    write_svhn(tmp_path, 4)
    savemat(tmp_path / "test_32x32.mat", content)
    refused("svhn", tmp_path, "test_32x32.mat .*" + message)


def test_labels_as_floats_are_read(tmp_path):
    write_svhn(tmp_path, 4)
    savemat(tmp_path / "test_32x32.mat", {"X": PIXELS, "y": DIGITS.astype(float)})
    assert read("svhn", tmp_path).test.labels.tolist() == [1, 2, 0, 9]


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_matrix_file(tmp_path, keep):
    write_svhn(tmp_path, 8)
    cut(tmp_path / "train_32x32.mat", keep)
    refused("svhn", tmp_path, "train_32x32.mat must (be a whole MATLAB file, but|have X and y)")


# Tiny-ImageNet


def some_image(k: int) -> str:
    return f"train/{WNIDS[k]}/images/{WNIDS[k]}_0.JPEG"


def write_text(name: str, text: str, place: Path) -> None:
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def remove_val(place: Path) -> None:
    shutil.rmtree(place / "val")


def to_other_folder(place: Path) -> None:
    shutil.move(place / f"train/{WNIDS[9]}", place / "train/n9")


def unnamed(place: Path) -> None:
    path = place / "val/val_annotations.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))


TREES = {
    "too few classes": (
        lambda p: write_text("wnids.txt", "\n".join(WNIDS[:-3]), p),
        "wnids.txt must list 200 classes, but lists 197$",
    ),
    "a class twice": (
        lambda p: write_text("wnids.txt", "\n".join([*WNIDS[:-1], WNIDS[0]]), p),
        "wnids.txt must list 200 classes, but lists 199$",
    ),
    "a folder of no class": (
        to_other_folder,
        f"train/n9/images/{WNIDS[9]}_0.JPEG must be in a folder of a class of wnids.txt$",
    ),
    "classes without images": (
        lambda p: [(p / some_image(k)).unlink() for k in range(6)],
        f"train must have images of all classes, but lacks {', '.join(WNIDS[:4])} and 2 more$",
    ),
    "no val": (remove_val, f"{TINY}/val must have images, but has none$"),
    "no annotations": (
        lambda p: (p / "val/val_annotations.txt").unlink(),
        "val/images/val_0000.JPEG must be in a folder of a class of wnids.txt$",
    ),
    "a strange annotation": (
        lambda p: write_text("val/val_annotations.txt", f"a.JPEG\t{WNIDS[0]}\t0\nb.JPEG\tn9\n", p),
        "val_annotations.txt must have a class of wnids.txt in line 2, but has 'b.JPEG",
    ),
    "a missing file": (
        lambda p: (p / "val/images/val_0007.JPEG").unlink(),
        "val_annotations.txt must name files that are there, but val_0007.JPEG are missing$",
    ),
    "images without annotation": (
        unnamed,
        "must name all images of val, but leaves out val_0098.JPEG, val_0099.JPEG$",
    ),
    "a larger image": (
        lambda p: (p / some_image(3)).write_bytes(jpeg(96, 7)),
        f"{WNIDS[3]}_0.JPEG must be of 64x64 pixels, but is of 96x96$",
    ),
    "no JPEG": (
        lambda p: write_text(some_image(4), "<html>", p),
        f"{WNIDS[4]}_0.JPEG must be a whole JPEG image, but is damaged: cannot identify",
    ),
    "a truncated JPEG": (
        lambda p: cut(p / some_image(4), 0.9),
        f"{WNIDS[4]}_0.JPEG must be a whole JPEG image, but is damaged: .*(?i:truncated)",
    ),
    "a truncated JPEG of val": (
        lambda p: cut(p / "val/images/val_0011.JPEG", 0.9),
        "val_0011.JPEG must be a whole JPEG image, but is damaged: .*(?i:truncated)",
    ),
}


@pytest.mark.parametrize("case", TREES)
def test_a_tree_of_something_else(tmp_path, case):
    harm, message = TREES[case]
    write_tiny_imagenet(tmp_path)
    harm(tmp_path / TINY)
    refused("tiny-imagenet", tmp_path, message)
