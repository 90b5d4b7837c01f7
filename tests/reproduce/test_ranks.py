"""Several processes: they share each batch, agree on what to refuse, and none waits for ever."""

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benchmarks.options import BadOption
from benchmarks.reproduce import networks, plan, ranks
from benchmarks.reproduce.data import BadData, read
from benchmarks.reproduce.engine import Machine, Trainer
from benchmarks.reproduce.ranks import Ranks, Stopped
from tests.reproduce.running import NARROW, checkpoint_of, config, log_of, reproduce, tensors

ROOT = Path(__file__).parents[2]


def test_one_process_is_a_rank_of_its_own(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks.joined(torch.device("cpu")) as alone:
        assert alone == Ranks(0, 1) and not dist.is_initialized()
        assert alone.add(torch.ones(2)).tolist() == [1, 1]
        assert alone.together(lambda: 5) == 5
        with pytest.raises(BadOption, match="a file is missing"):
            alone.together(lambda: refuse(BadData("a file is missing")))
        with pytest.raises(ZeroDivisionError):  # a bug, not bad input
            alone.together(lambda: 1 / 0)


def refuse(error):
    raise error


def test_what_one_rank_refuses_all_refuse(monkeypatch):
    def gather(every, said):
        every[:] = ["", "rank 1 has no such file"]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    with pytest.raises(BadOption, match="rank 1 has no such file"):
        Ranks(0, 2).together(lambda: 5)


def test_only_the_first_rank_writes(monkeypatch):
    monkeypatch.setattr(dist, "all_gather_object", lambda every, said: None)
    done = []
    for rank in range(2):
        Ranks(rank, 2).first(lambda rank=rank: done.append(rank))
    assert done == [0]


def test_a_rank_that_fails_says_so_in_one_sentence(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    ended = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: ended.append(backend))
    monkeypatch.setattr(dist, "get_rank", lambda: 2)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: ended.append("left"))
    said = r"^rank 2 of 3: RuntimeError: out of memory$"
    with pytest.raises(Stopped, match=said), ranks.joined(torch.device("cpu")):
        raise RuntimeError("out of\n memory")
    assert ended == ["gloo"]  # to leave the group would wait for the others
    for error in (BadOption("no such file"), Stopped("diverged")):
        with pytest.raises(type(error), match=str(error)), ranks.joined(torch.device("cpu")):
            raise error
    assert ended == ["gloo", "gloo", "left", "gloo", "left"]


def test_ranks_share_each_batch_and_its_crops(cifar10, monkeypatch):
    """Their shards together are the batch of one process."""
    monkeypatch.setattr(
        "benchmarks.reproduce.engine.DistributedDataParallel", lambda network: network
    )
    images, seen = read("cifar10", cifar10), {}
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        machine = Machine(torch.device("cpu"), ranks=Ranks(rank, world))
        trainer = Trainer(config(batch=16), machine.holding(images), machine)
        seen[rank, world] = batches = []
        monkeypatch.setattr(
            trainer, "_step", lambda *batch, to=batches: to.append(batch) or (torch.zeros(()),) * 2
        )
        list(trainer.epoch(3))
    assert len(seen[0, 1]) == 4
    for whole, *shards in zip(seen[0, 1], seen[0, 2], seen[1, 2], strict=True):
        for part in (0, 1):  # images, labels
            joined = torch.stack([shard[part] for shard in shards], 1).flatten(0, 1)
            assert torch.equal(joined, whole[part])


def test_images_that_ranks_cannot_share_are_left_out(cifar10):
    machine = Machine(torch.device("cpu"))
    trainer = Trainer(config(batch=21), machine.holding(read("cifar10", cifar10)), machine)
    trainer.ranks = Ranks(0, 3)
    assert [len(rows) for rows in trainer._batches()] == [21, 21, 21]
    assert trainer.steps == 3


def test_a_batch_that_the_ranks_cannot_share_is_refused(cifar10, capsys, monkeypatch):
    arguments = Namespace(batch=16, amp="none", steps=None, resume=False, device="cpu")
    plan.check(arguments, read("cifar10", cifar10), 2)
    with pytest.raises(BadOption, match="a multiple of the 3 processes, got 16"):
        plan.check(arguments, read("cifar10", cifar10), 3)


def test_other_ranks_leave_the_message_to_the_first(cifar10, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert reproduce(tmp_path / "none", tmp_path / "runs") == 2
    assert capsys.readouterr() == ("", "")


def torchrun(data, out, *words, failing="", step=1):
    """The completed process of two ranks."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run += [str(ROOT / "tests/reproduce/narrow.py"), "reproduce", "cifar10", *NARROW]
    run += ["--data", str(data), "--out", str(out), *words]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FAILING_RANK": failing}
    env["FAILING_STEP"] = str(step)
    return subprocess.run(run, env=env, capture_output=True, text=True, timeout=240)


@pytest.mark.deep
def test_two_processes_train_as_one_does(cifar10, tmp_path, monkeypatch):
    """Without batch norm, whose statistics are of a rank's own shard."""
    monkeypatch.setitem(networks.NORMS, "group", lambda channels: torch.nn.Identity())  # narrow.py
    words = ["--epochs", "2", "--method", "group-norm"]
    done = torchrun(cifar10, tmp_path / "two", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes") == 1 and done.stdout.count("epoch 2 of 2") == 1
    assert reproduce(cifar10, tmp_path / "one", *words) == 0
    name = "cifar10-preactresnet18-group-norm-seed0"
    one, two = (log_of(tmp_path / folder / name) for folder in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        for key in a:
            assert a[key] == b[key] or float(a[key]) == pytest.approx(float(b[key]), rel=1e-6)


@pytest.mark.deep
def test_two_processes_go_on_with_the_same_bits(cifar10, tmp_path):
    words = ["--epochs", "3", "--method", "manifold-mixup,dropout"]
    assert torchrun(cifar10, tmp_path / "whole", *words).returncode == 0
    assert torchrun(cifar10, tmp_path / "again", *words, failing="1", step=18).returncode != 0
    done = torchrun(cifar10, tmp_path / "again", *words, "--resume")
    assert done.returncode == 0, done.stderr
    assert "manifold-mixup-seed0, epoch" not in done.stdout  # it was whole
    assert "dropout-seed0, epoch 2 of 3" in done.stdout
    assert "dropout-seed0, epoch 1 of 3" not in done.stdout
    for name in ("manifold-mixup", "dropout"):
        folder = f"cifar10-preactresnet18-{name}-seed0"
        assert log_of(tmp_path / "whole" / folder) == log_of(tmp_path / "again" / folder)
        old, new = (checkpoint_of(tmp_path / part / folder) for part in ("whole", "again"))
        assert all(torch.equal(a, b) for a, b in zip(tensors(old), tensors(new), strict=True))


@pytest.mark.deep
def test_a_failing_process_ends_the_others(cifar10, tmp_path):
    done = torchrun(cifar10, tmp_path, "--epochs", "2", failing="1")
    assert done.returncode != 0
    assert "python -m benchmarks: rank 1 of 2: RuntimeError: out of memory\n" in done.stderr


@pytest.mark.deep
def test_bad_input_is_said_once_by_two_processes(cifar10, tmp_path):
    done = torchrun(tmp_path / "none", tmp_path / "runs")
    assert done.returncode != 0
    assert done.stderr.count("python -m benchmarks: ") == 1
    assert not (tmp_path / "runs").exists()
