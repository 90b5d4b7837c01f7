"""Every form in which an image set is handed out is read."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.reproduce.data import read
from tests.reproduce.reading import CIFAR, TINY, assert_near, assert_same
from tests.support.image_files import (
    WNIDS,
    write_cifar10,
    write_cifar100,
    write_svhn,
    write_tiny_imagenet,
)

FORMS = [(binary, archive) for binary in (False, True) for archive in (False, True)]


@pytest.mark.parametrize(("binary", "archive"), FORMS)
@pytest.mark.parametrize("name", CIFAR)
def test_cifar_in_every_form(tmp_path, name, binary, archive):
    train, test = CIFAR[name](tmp_path, 64, binary=binary, archive=archive)
    found = read(name, tmp_path)
    assert found.name == name and found.classes == int(name.removeprefix("cifar"))
    assert_same(found.train, train)
    assert_same(found.test, test)


@pytest.mark.parametrize("name", CIFAR)
def test_the_folder_of_the_files_itself(tmp_path, name):
    train, test = CIFAR[name](tmp_path, 20)
    (place,) = tmp_path.iterdir()
    assert_same(read(name, place).train, train)
    assert_same(read(name, place).test, test)


def test_svhn_with_the_digit_0_as_label_10(tmp_path):
    train, test = write_svhn(tmp_path, 64)
    assert (train.labels == 0).any()
    found = read("svhn", tmp_path)
    assert_same(found.train, train)
    assert_same(found.test, test)
    shutil.copytree(tmp_path, tmp_path / "data/svhn")
    assert_same(read("svhn", tmp_path / "data").test, test)


@pytest.mark.parametrize("options", [{}, {"zipped": True}, {"sorted_val": True}], ids=str)
def test_tiny_imagenet_in_every_form(tmp_path, options):
    train, test = write_tiny_imagenet(tmp_path, 2, **options)
    found = read("tiny-imagenet", tmp_path)
    assert found.classes == 200 and found.train.images.shape == (400, 3, 64, 64)
    assert_near(found.train, train)
    assert_near(found.test, test)


def test_tiny_imagenet_in_other_places(tmp_path):
    train, test = write_tiny_imagenet(tmp_path, sorted_val=True)
    place = tmp_path / TINY
    (place / "val/val_annotations.txt").unlink()
    (place / f"train/{WNIDS[0]}/images/._{WNIDS[0]}_0.JPEG").write_text("left by macOS")
    assert_near(read("tiny-imagenet", place).train, train)
    assert_near(read("tiny-imagenet", place).test, test)


def test_more_images_than_are_decoded_at_once(tmp_path, monkeypatch):
    train, _ = write_tiny_imagenet(tmp_path)
    monkeypatch.setattr("benchmarks.reproduce.data.tiny_imagenet.BLOCK", 7)
    assert_near(read("tiny-imagenet", tmp_path).train, train)


def test_a_grey_image_becomes_rgb_and_rows_stay_rows(tmp_path):
    write_tiny_imagenet(tmp_path)
    grey = Image.linear_gradient("L").resize((64, 64))  # from black above to white below
    grey.save(tmp_path / TINY / f"train/{WNIDS[5]}/images/{WNIDS[5]}_0.JPEG")
    found = read("tiny-imagenet", tmp_path).train.images[5].int()
    expected = torch.arange(64).view(1, 64, 1) * 4 + 2
    assert (found - expected).abs().max() <= 4


def test_means_and_deviations_are_those_of_the_papers_code(tmp_path):
    write_cifar10(tmp_path, 10)
    write_svhn(tmp_path, 4)
    found = read("cifar10", tmp_path)
    assert [255 * m for m in found.mean] == pytest.approx([125.3, 123.0, 113.9])
    assert [255 * s for s in found.std] == pytest.approx([63.0, 62.1, 66.7])
    found = read("svhn", tmp_path)
    assert found.mean == found.std == (0.5, 0.5, 0.5)


def test_channels_are_red_green_and_blue(tmp_path):
    write_cifar100(tmp_path, 4)
    content = (tmp_path / "cifar-100-python/test").read_bytes()
    raw = pickle.loads(content, encoding="bytes")[b"data"][0]
    found = read("cifar100", tmp_path).test.images[0]
    assert found[0].flatten().tolist() == raw[:1024].tolist()
    assert found[2, 0].tolist() == raw[2048:2080].tolist()


def test_a_whole_archive_serves_where_the_folder_is_incomplete(tmp_path):
    train, _ = write_cifar10(tmp_path, 20, archive=True)
    write_cifar10(tmp_path, 10)
    (tmp_path / "cifar-10-batches-py/data_batch_4").unlink()
    assert_same(read("cifar10", tmp_path).train, train)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_batch_pickled_by_python_3(tmp_path, order):
    train, _ = write_cifar100(tmp_path, 8)
    path = tmp_path / "cifar-100-python/train"
    batch = pickle.loads(path.read_bytes(), encoding="bytes")
    batch[b"data"] = np.array(batch[b"data"], order=order)
    path.write_bytes(pickle.dumps(batch, protocol=4))
    assert_same(read("cifar100", tmp_path).train, train)
