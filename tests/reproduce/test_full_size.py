"""A trial on files as large as CIFAR-10's, with the paper's network, schedule and batch."""

import pytest

from benchmarks import __main__ as cli
from tests.support.image_files import write_cifar10


@pytest.mark.deep
def test_a_trial_at_full_size(tmp_path, capsys):
    write_cifar10(tmp_path, 50_000, 10_000)
    runs = ["--method", "erm,manifold-mixup", "--seeds", "0,1"]
    assert cli.main(["reproduce", "cifar10", "--data", str(tmp_path), *runs, "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert "preactresnet18 on cifar10 (50000 images of 10 classes, 10000 to test on)" in out
    assert "4 runs of 1200 epochs, batch 100, on cpu" in out
    assert "for all: 4 runs, 4800 epochs of 500 steps and a test" in out
