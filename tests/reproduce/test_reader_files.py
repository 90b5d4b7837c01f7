"""Folders and archives that lack files, or are damaged, are refused in a sentence."""

import gzip
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks.reproduce.data import NAMES, read
from benchmarks.reproduce.data.files import listed, said
from tests.reproduce.reading import TINY, assert_near, cut, refused
from tests.support import image_files
from tests.support.image_files import (
    jpeg,
    write_cifar10,
    write_cifar100,
    write_svhn,
    write_tiny_imagenet,
)


@pytest.mark.parametrize("name", NAMES)
def test_no_folder(tmp_path, name):
    refused(
        name, tmp_path / "nowhere", "nowhere must be the folder of the data, but does not exist"
    )
    (tmp_path / "file").touch()
    refused(name, tmp_path / "file", "file must be the folder of the data, but is a file")


EXPECTED = {
    "cifar10": "cifar-10-batches-py/ or cifar-10-batches-bin/ or cifar-10-python.tar.gz or "
    "cifar-10-binary.tar.gz",
    "cifar100": "cifar-100-python/ or cifar-100-binary/ or cifar-100-python.tar.gz or "
    "cifar-100-binary.tar.gz",
    "svhn": "train_32x32.mat and test_32x32.mat",
    "tiny-imagenet": "tiny-imagenet-200/ with wnids.txt or tiny-imagenet-200.zip",
}


@pytest.mark.parametrize("name", NAMES)
def test_other_files_than_expected(tmp_path, name):
    refused(name, tmp_path, f"must hold {EXPECTED[name]}, but holds nothing$")
    for k in range(6):
        (tmp_path / f"{k}.txt").touch()
    refused(name, tmp_path, r"but holds 0.txt, 1.txt, 2.txt, 3.txt and 2 more$")


def test_the_files_of_another_set(tmp_path):
    write_cifar100(tmp_path, 4)
    refused("cifar10", tmp_path, "but holds cifar-100-python$")


def test_folders_with_the_names_of_the_files(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    refused("cifar100", tmp_path, "but holds test, train$")


def test_an_incomplete_set_of_files(tmp_path):
    write_cifar10(tmp_path, 10)
    (tmp_path / "cifar-10-batches-py/data_batch_3").unlink()
    (tmp_path / "cifar-10-batches-py/test_batch").unlink()
    words = "cifar-10-batches-py must hold .* and 2 more, but lacks data_batch_3, test_batch$"
    refused("cifar10", tmp_path, words)
    write_svhn(tmp_path, 4)
    (tmp_path / "test_32x32.mat").unlink()
    refused(
        "svhn", tmp_path, "must hold test_32x32.mat, train_32x32.mat, but lacks test_32x32.mat$"
    )


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    write_svhn(tmp_path, 4)

    def fail(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", fail)
    words = "train_32x32.mat must be a readable file, but: Permission denied"
    refused("svhn", tmp_path, words)


def test_names_in_messages_are_few():
    assert listed("cab") == "a, b, c"
    assert listed("fedcba") == "a, b, c, d and 2 more"
    assert listed([]) == "nothing"


def test_the_words_of_another_error_are_one_line():
    assert said(ValueError("not\n  this\nformat")) == "not this format"
    assert said(EOFError()) == "EOFError"


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.98])
@pytest.mark.parametrize("binary", [False, True])
def test_a_truncated_archive(tmp_path, binary, keep):
    write_cifar10(tmp_path, 20, binary=binary, archive=True)
    (archive,) = tmp_path.iterdir()
    cut(archive, keep)
    refused("cifar10", tmp_path, "tar.gz must be a whole .tar.gz, but is truncated or damaged")


def test_an_archive_of_something_else(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_text("<html>not found</html>")
    refused("cifar10", tmp_path, "python.tar.gz must be a whole .tar.gz, but is truncated or dam")


@pytest.mark.parametrize("level", [0, 9])
def test_a_damaged_byte_in_an_archive(tmp_path, level):
    """Stored bytes can be unpacked whatever they are: the checksum alone tells that one changed."""
    write_cifar10(tmp_path, 20, archive=True)
    (archive,) = tmp_path.iterdir()
    content = bytearray(gzip.compress(gzip.decompress(archive.read_bytes()), level))
    content[len(content) // 3] ^= 1
    archive.write_bytes(content)
    refused("cifar10", tmp_path, "tar.gz must be a whole .tar.gz, but is truncated or damaged")


def test_an_archive_that_lacks_a_file(tmp_path):
    write_cifar100(tmp_path, 4)
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "cifar-100-python/train", "cifar-100-python/train")
        tar.add(tmp_path / "cifar-100-python", "cifar-100-python/test", recursive=False)
    shutil.rmtree(tmp_path / "cifar-100-python")
    refused("cifar100", tmp_path, "tar.gz must hold test, train, but lacks test$")


def test_a_truncated_zip(tmp_path):
    write_tiny_imagenet(tmp_path, zipped=True)
    cut(tmp_path / f"{TINY}.zip", 0.6)
    refused("tiny-imagenet", tmp_path, "200.zip must be a whole .zip, but is truncated or damaged")


def rewritten(archive: Path, change) -> None:
    """The archive anew, with the dict of its files after change."""
    with zipfile.ZipFile(archive) as zip:
        files = {name: zip.read(name) for name in zip.namelist()}
    change(files)
    with zipfile.ZipFile(archive, "w") as zip:
        for name, content in files.items():
            zip.writestr(name, content)


def test_a_zip_without_its_list_of_classes_and_one_with_folders_of_others(tmp_path):
    train, _ = write_tiny_imagenet(tmp_path, zipped=True)
    archive = tmp_path / f"{TINY}.zip"
    odd = ("__MACOSX/train/._x.JPEG", f"{TINY}/", TINY, ".")
    rewritten(archive, lambda files: files.update(dict.fromkeys(odd, b"")))
    assert_near(read("tiny-imagenet", tmp_path).train, train)
    rewritten(archive, lambda files: files.pop(f"{TINY}/wnids.txt"))
    refused(
        "tiny-imagenet", tmp_path, "200.zip/tiny-imagenet-200 must hold wnids.txt, but lacks it"
    )


def test_a_damaged_byte_in_a_zip(tmp_path):
    write_tiny_imagenet(tmp_path, zipped=True)
    archive = tmp_path / f"{TINY}.zip"
    content = archive.read_bytes()
    archive.write_bytes(content.replace(jpeg(64, image_files.color(0))[-20:], bytes(20), 1))
    refused("tiny-imagenet", tmp_path, "n01000000_0.JPEG must be whole, but is damaged .*CRC")


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (6, "200.zip must be a whole .zip, but is truncated or damaged .zip file version"),
        (10, "wnids.txt must be whole, but is damaged .That compression method is not supported"),
    ],
    ids=["version", "method"],
)
def test_a_damaged_entry_of_a_zip(tmp_path, offset, message):
    """In the directory of the archive, of its first file."""
    write_tiny_imagenet(tmp_path, zipped=True)
    archive = tmp_path / f"{TINY}.zip"
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + offset] = 99
    archive.write_bytes(content)
    refused("tiny-imagenet", tmp_path, message)
