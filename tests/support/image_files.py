"""Writes small image sets in the true formats of CIFAR, SVHN and Tiny-ImageNet.

Every function returns what it wrote: the training split and the test split.
"""

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

from benchmarks.reproduce.data import Split

WNIDS = [f"n{1000000 + 37 * k:08d}" for k in range(200)]


def random_split(count: int, classes: int, seed: int) -> Split:
    """Noise around the class's own brightness, so that a network can learn something."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    noise = torch.randint(64, (count, 3, 32, 32), generator=generator)
    images = noise + (191 * labels // (classes - 1)).view(-1, 1, 1, 1)
    return Split(images.to(torch.uint8), labels)


class Python2Pickler(pickle._Pickler):
    """Writes strings as the `str` of Python 2, in which the CIFAR batches were pickled."""

    def save_string(self, text: str | bytes) -> None:
        content = text.encode() if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, str: save_string, bytes: save_string}


def python2_pickle(value: object) -> bytes:
    written = io.BytesIO()
    Python2Pickler(written, protocol=2).dump(value)
    return written.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_files(folder: Path, name: str, archive: str | None, files: dict[str, bytes]) -> None:
    """The files in the subfolder `name`, or in an archive that has it."""
    if archive is None:
        (folder / name).mkdir(parents=True)
        for file, content in files.items():
            (folder / name / file).write_bytes(content)
        return
    with tarfile.open(folder / archive, "w:gz") as tar:
        for file, content in reversed(files.items()):  # nor are the real ones in order
            member = tarfile.TarInfo(f"{name}/{file}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def records(split: Split, coarse: bool) -> bytes:
    """The binary form: label bytes, then 3072 bytes of red, green and blue."""
    columns = [split.labels.view(-1, 1), split.images.flatten(1)]
    if coarse:
        columns.insert(0, split.labels.view(-1, 1) // 5)
    return torch.cat(columns, 1).to(torch.uint8).numpy().tobytes()


def batch(split: Split, labels: str) -> dict:
    return {
        "batch_label": "a batch",
        labels: split.labels.tolist(),
        "data": split.images.flatten(1).numpy(),
        "filenames": [f"{k}.png" for k in range(len(split.labels))],
    }


def write_cifar10(
    folder: Path,
    count: int,
    test_count: int | None = None,
    *,
    binary: bool = False,
    archive: bool = False,
) -> tuple[Split, Split]:
    """`count` training images in five batches; default for the test: half as many."""
    train, test = random_split(count, 10, 0), random_split(test_count or count // 2, 10, 1)
    parts = zip(train.images.tensor_split(5), train.labels.tensor_split(5), strict=True)
    splits = {f"data_batch_{k}": Split(*part) for k, part in enumerate(parts, 1)}
    splits["test_batch"] = test
    if binary:
        files = {f"{name}.bin": records(split, False) for name, split in splits.items()}
    else:
        files = {name: python2_pickle(batch(split, "labels")) for name, split in splits.items()}
        files["batches.meta"] = python2_pickle({"num_cases_per_batch": 10000})
    kind, form = ("bin", "binary") if binary else ("py", "python")
    packed = f"cifar-10-{form}.tar.gz" if archive else None
    write_files(folder, f"cifar-10-batches-{kind}", packed, files)
    return train, test


def write_cifar100(
    folder: Path, count: int, *, binary: bool = False, archive: bool = False
) -> tuple[Split, Split]:
    """`count` training images, and half as many for the test."""
    splits = {"train": random_split(count, 100, 2), "test": random_split(count // 2, 100, 3)}
    if binary:
        files = {f"{name}.bin": records(split, True) for name, split in splits.items()}
    else:
        files = {
            name: python2_pickle(
                batch(split, "fine_labels") | {"coarse_labels": (split.labels // 5).tolist()}
            )
            for name, split in splits.items()
        }
        files["meta"] = python2_pickle({"fine_label_names": []})
    form = "binary" if binary else "python"
    packed = f"cifar-100-{form}.tar.gz" if archive else None
    write_files(folder, f"cifar-100-{form}", packed, files)
    return splits["train"], splits["test"]


def write_svhn(folder: Path, count: int) -> tuple[Split, Split]:
    """`count` training images, and half as many for the test."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = random_split(count, 10, 4), random_split(count // 2, 10, 5)
    for name, split in (("train", train), ("test", test)):
        x = split.images.permute(2, 3, 1, 0).numpy()
        y = torch.where(split.labels == 0, 10, split.labels).view(-1, 1).numpy()
        savemat(
            folder / f"{name}_32x32.mat", {"X": x, "y": y.astype(np.uint8)}, do_compression=True
        )
    return train, test


def color(label: int) -> tuple[int, int, int]:
    """A color of its own for each of the 200 classes."""
    return 20 + 10 * (label % 20), 20 + 20 * (label // 20), 128


def jpeg(size: int, shade: tuple[int, int, int] | int) -> bytes:
    written = io.BytesIO()
    Image.new("L" if isinstance(shade, int) else "RGB", (size, size), shade).save(written, "JPEG")
    return written.getvalue()


def of_color(labels: list[int]) -> Split:
    colors = torch.tensor([color(label) for label in labels], dtype=torch.uint8)
    return Split(colors.view(-1, 3, 1, 1).expand(-1, -1, 64, 64), torch.tensor(labels))


def write_tiny_imagenet(
    folder: Path, of_each: int = 1, *, zipped: bool = False, sorted_val: bool = False
) -> tuple[Split, Split]:
    """`of_each` training images of each of the 200 classes, and 100 for the test: one color each,
    which JPEG changes by little."""
    train = [label for label in range(200) for _ in range(of_each)]
    test = [(7 * k) % 200 for k in range(100)]
    files = {"wnids.txt": "".join(f"{name}\n" for name in reversed(WNIDS)).encode()}
    files["words.txt"] = "".join(f"{name}\tthing\n" for name in WNIDS).encode()
    for k, label in enumerate(train):
        wnid = WNIDS[label]
        files[f"train/{wnid}/images/{wnid}_{k % of_each}.JPEG"] = jpeg(64, color(label))
    lines = ""
    for k, label in enumerate(test):
        place = f"val/{WNIDS[label]}/images" if sorted_val else "val/images"
        files[f"{place}/val_{k:04d}.JPEG"] = jpeg(64, color(label))
        lines += f"val_{k:04d}.JPEG\t{WNIDS[label]}\t0\t0\t63\t63\n"
    files["val/val_annotations.txt"] = lines.encode()
    if zipped:
        with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as target:
            for name, content in files.items():
                target.writestr(f"tiny-imagenet-200/{name}", content)
    else:
        for name, content in files.items():
            path = folder / "tiny-imagenet-200" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return of_color(train), of_color(sorted(test) if sorted_val else test)
