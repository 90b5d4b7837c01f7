"""Whole runs through the command line: folders, logs, results, and going on after a stop."""

import json
import shutil

import pytest
import torch

from benchmarks import __main__ as cli
from benchmarks.reproduce import engine, report, runs
from benchmarks.reproduce.data import read
from benchmarks.reproduce.folder import COLUMNS, RunFolder
from benchmarks.reproduce.settings import METHODS
from tests.reproduce.running import checkpoint_of, config, log_of, reproduce, tensors
from tests.support.image_files import write_cifar100, write_svhn, write_tiny_imagenet

WRITERS = {
    "cifar10": None,  # the fixture's
    "cifar100": lambda folder: write_cifar100(folder, 64),
    "svhn": lambda folder: write_svhn(folder, 64),
    "tiny-imagenet": lambda folder: write_tiny_imagenet(folder, zipped=True),
}


@pytest.mark.parametrize("dataset", WRITERS)
def test_two_epochs_on_every_set(dataset, cifar10, tmp_path, capsys):
    data, images, classes = cifar10, (64, 32), 10
    if WRITERS[dataset]:
        data = tmp_path / "data"
        data.mkdir()
        WRITERS[dataset](data)
    if dataset == "tiny-imagenet":
        images, classes = (200, 100), 200
    if dataset == "cifar100":
        classes = 100
    batch = "100" if dataset == "tiny-imagenet" else "32"
    words = ["--epochs", "2", "--batch", batch, "--seeds", "5"]
    assert reproduce(data, tmp_path / "runs", *words, dataset=dataset) == 0
    folder = tmp_path / "runs" / f"{dataset}-preactresnet18-manifold-mixup-seed5"
    said = capsys.readouterr().out
    assert f"{images[0]} images of {classes} classes, {images[1]} to test on" in said
    assert "seed5, epoch 2 of 2: loss " in said and f"written: {folder}" in said
    assert sorted(p.name for p in folder.iterdir()) == [
        "checkpoint.pt",
        "config.json",
        "log.csv",
        "result.json",
    ]
    log, result = log_of(folder), json.loads((folder / "result.json").read_text())
    assert (folder / "log.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    assert [row["epoch"] for row in log] == ["1", "2"]
    assert [float(row["lr"]) for row in log] == pytest.approx([0.1, 0.01])
    last = {key: float(value) if value else None for key, value in log[-1].items()}
    for key in ("test_error", "test_nll", "test_top5_error"):
        assert result[key] == last[key]
    assert (result["test_top5_error"] is None) == (classes == 10)
    if classes > 10:
        assert 0 <= result["test_top5_error"] <= result["test_error"] <= 100
    assert result["robustness"] is None
    assert result["config"] == json.loads((folder / "config.json").read_text())
    assert result["config"] | {"layers": None} == {
        "dataset": dataset,
        "network": "preactresnet18",
        "method": "manifold-mixup",
        "alpha": 0.2 if dataset == "tiny-imagenet" else 2.0,
        "layers": None,
        "seed": 5,
        "epochs": 2,
        "batch": int(batch),
        "lr": 0.1,
        "width": 2,
        "amp": "none",
        "train_images": images[0],
        "test_images": images[1],
    }


def test_every_method_trains_and_two_networks(cifar10, tmp_path, capsys):
    words = ["--epochs", "1", "--method", ",".join(METHODS), "--batch", "64"]
    assert reproduce(cifar10, tmp_path, *words) == 0
    assert reproduce(cifar10, tmp_path, *words[:2], "--network", "wideresnet28-10") == 0
    losses = {path.name: log_of(path)[0]["train_loss"] for path in tmp_path.iterdir()}
    assert len(losses) == len(METHODS) + 1
    # The first step of weight decay has the weights of ERM; all others differ.
    names = {name: losses[f"cifar10-preactresnet18-{name}-seed0"] for name in METHODS}
    assert names["weight-decay"] == names["erm"]
    assert len(set(losses.values())) == len(losses) - 1
    assert f"{len(METHODS)} runs of 1 epochs" in capsys.readouterr().out


@pytest.fixture(scope="module")
def whole(cifar10, tmp_path_factory):
    """Four epochs at once, of a method that draws from every generator."""
    out = tmp_path_factory.mktemp("whole")
    assert reproduce(cifar10, out, *LONG) == 0
    return out / NAME


FOUR = ("--epochs", "4", "--batch", "32")  # of two steps
LONG = (*FOUR, "--method", "hidden-noise,manifold-mixup")
NAME = "cifar10-preactresnet18-manifold-mixup-seed0"
NOISY = "cifar10-preactresnet18-hidden-noise-seed0"


def stop_at(monkeypatch, step):
    """Lets the training be interrupted before the step of that number, over all runs."""
    plain, steps = engine.Trainer._step, iter(range(1, 10**6))

    def stopping(self, images, labels):
        if next(steps) == step:
            raise KeyboardInterrupt
        return plain(self, images, labels)

    monkeypatch.setattr(engine.Trainer, "_step", stopping)


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(2, id="in the first epoch"),
        pytest.param(6, id="inside an epoch"),
        pytest.param(9, id="between two runs"),
        pytest.param(14, id="inside the second run"),
    ],
)
def test_a_run_that_goes_on_gives_the_same_bits(cifar10, tmp_path, monkeypatch, whole, step):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_at(patched, step)
        reproduce(cifar10, tmp_path, *LONG)
    assert not (tmp_path / NAME / "result.json").exists()
    torch.manual_seed(step)  # what the new process has in its generators must not matter
    assert reproduce(cifar10, tmp_path, *LONG, "--resume") == 0
    for name in (NAME, NOISY):
        there, here = whole.parent / name, tmp_path / name
        assert log_of(here) == log_of(there)
        assert (here / "result.json").read_text() == (there / "result.json").read_text()
        old, new = checkpoint_of(there), checkpoint_of(here)
        assert (old["epoch"], old["config"]) == (new["epoch"], new["config"])
        pairs = list(zip(tensors(old), tensors(new), strict=True))
        assert len(pairs) > 100 and all(torch.equal(a, b) for a, b in pairs)


def test_what_was_logged_after_the_checkpoint_is_cut_back(cifar10, tmp_path, monkeypatch, whole):
    """As after a stop between the log's line and the checkpoint, in the middle of a line."""
    words = (*FOUR, "--method", "manifold-mixup")

    with monkeypatch.context() as patched:
        stop_at(patched, 7)
        with pytest.raises(KeyboardInterrupt):
            reproduce(cifar10, tmp_path, *words)
    with open(tmp_path / NAME / "log.csv", "a") as log:
        log.write("4,0.001,2.0,30.0,2.2,80.0,,0.1\n5,0.0")
    assert reproduce(cifar10, tmp_path, *words, "--resume") == 0
    assert log_of(tmp_path / NAME) == log_of(whole)


def test_a_line_is_in_the_log_before_its_checkpoint(cifar10, tmp_path, monkeypatch):
    seen = []
    plain = RunFolder.save

    def save(self, config, epoch, state):
        seen.append((epoch, len(log_of(self.path))))
        plain(self, config, epoch, state)

    monkeypatch.setattr(RunFolder, "save", save)
    reproduce(cifar10, tmp_path, "--epochs", "2")
    assert seen == [(0, 0), (1, 1), (2, 2)]


def test_a_finished_run_is_not_trained_again(cifar10, tmp_path, whole, monkeypatch, capsys):
    shutil.copytree(whole.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / NAME / "result.json").unlink()
    stop_at(monkeypatch, 1)
    assert reproduce(cifar10, tmp_path, *LONG, "--resume") == 0
    result = (tmp_path / NAME / "result.json").read_text()
    assert result == (whole / "result.json").read_text()
    assert "epoch 1" not in capsys.readouterr().out


def test_a_checkpoint_is_replaced_at_once(cifar10, tmp_path, monkeypatch, whole):
    """A stop while it is written leaves the old one, whole."""
    shutil.copytree(whole, tmp_path / NAME)
    folder = RunFolder(tmp_path / NAME)
    old = folder.checkpoint.read_bytes()

    def stop(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        folder.save(runs.Config(**checkpoint_of(whole)["config"]), 9, {"model": {}})
    assert folder.checkpoint.read_bytes() == old


def test_robustness_is_of_the_trained_network(cifar10, tmp_path, monkeypatch):
    given = []

    def evaluate(model, split, mean, std, device, batch, seed):
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
        given.append((len(split.labels), mean, std, str(device), batch, seed))
        return {"rotation": 12.5}

    monkeypatch.setattr(runs.robustness, "evaluate", evaluate)
    assert reproduce(cifar10, tmp_path, "--epochs", "1", "--robustness", "--seeds", "3") == 0
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "result.json").read_text())["robustness"] == {"rotation": 12.5}
    images = read("cifar10", cifar10)
    assert given == [(32, images.mean, images.std, "cpu", 16, 3)]


def test_options_reach_the_run(cifar10, tmp_path, capsys):
    words = ["--method", "manifold-mixup,erm", "--layers", "input,layer3", "--alpha", "0.5"]
    words += ["--epochs", "1", "--lr", "0.01", "--amp", "bfloat16", "--channels-last"]
    assert reproduce(cifar10, tmp_path, *words) == 0
    found = json.loads((tmp_path / NAME / "config.json").read_text())
    assert (found["layers"], found["alpha"], found["lr"]) == (["", "layer3"], 0.5, 0.01)
    assert found["amp"] == "bfloat16"
    erm = json.loads((tmp_path / NAME.replace("manifold-mixup", "erm") / "config.json").read_text())
    assert (erm["layers"], erm["alpha"]) == ([], None)


@pytest.mark.parametrize("method", ["manifold-mixup", "cutmix"])
def test_amp_and_channels_last_are_used(cifar10, method):
    given = []
    chosen = METHODS[method]
    run = config(method=method, alpha=chosen.alpha, layers=chosen.layers, amp="bfloat16", batch=16)
    machine = engine.Machine(torch.device("cpu"), channels_last=True)
    trainer = engine.Trainer(run, machine.holding(read("cifar10", cifar10)), machine)
    conv = trainer.network.layer1[0].conv1
    conv.register_forward_hook(lambda m, x, out: given.append(out))
    next(trainer.epoch(0))
    assert given[0].dtype == torch.bfloat16
    assert given[0].is_contiguous(memory_format=torch.channels_last)
    assert conv.weight.dtype == torch.float32


@pytest.mark.parametrize(("steps", "whole"), [(1, "7 epochs"), (6, "14 epochs")])
def test_a_trial_says_what_all_would_take_and_writes_nothing(
    cifar10, tmp_path, capsys, steps, whole
):
    words = ["--steps", str(steps), "--epochs", "7", "--seeds", "0" if steps == 1 else "0,1"]
    assert reproduce(cifar10, tmp_path / "runs", *words) == 0
    said = capsys.readouterr().out
    assert f"{steps} steps, " in said and " for all: " in said
    assert f"{whole} of 4 steps and a test" in said
    assert not (tmp_path / "runs").exists()


def test_the_estimate_counts_steps_tests_and_runs(cifar10, tmp_path, capsys, monkeypatch):
    clock = iter([100.0, 110.0, 130.0, 200.0, 203.0])
    monkeypatch.setattr(runs, "wait", lambda device: next(clock))
    words = ["--steps", "4", "--epochs", "10", "--seeds", "0,1"]
    assert reproduce(cifar10, tmp_path, *words) == 0
    said = capsys.readouterr().out
    assert "4 steps, 10 s each" in said  # 20 s for the two after the first two
    assert f"about {runs.duration(20 * (4 * 10 + 3))} for all: 2 runs, 20 epochs" in said


def test_the_last_smaller_batch_is_trained_too(cifar10, tmp_path):
    machine = engine.Machine(torch.device("cpu"))
    trainer = engine.Trainer(config(batch=25), machine.holding(read("cifar10", cifar10)), machine)
    counts = [sums[2].item() for sums in trainer.epoch(0)]
    assert counts == [25, 50, 64] and trainer.steps == 3


def test_each_trainer_is_closed(cifar10, tmp_path, monkeypatch):
    """Else the next run's ManifoldMixup, and the end of its processes, would meet the last one."""
    closed = []
    monkeypatch.setattr(engine.Trainer, "close", lambda self: closed.append(self.config.method))
    words = ["--epochs", "1", "--batch", "64", "--method", "cutmix,manifold-mixup"]
    assert reproduce(cifar10, tmp_path, *words) == 0
    assert reproduce(cifar10, tmp_path, "--steps", "1") == 0
    assert closed == ["cutmix", "manifold-mixup", "manifold-mixup"]
    stop_at(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        reproduce(cifar10, tmp_path, *words, "--seeds", "1")
    assert closed[3:] == ["cutmix"]


@pytest.mark.deep
def test_compiled_runs_one_after_another(cifar10, tmp_path):
    """Hooks of the second run's network are traced anew. The compiled code rounds differently."""
    words = ["--epochs", "1", "--batch", "32", "--method", "manifold-mixup,input-mixup"]
    for folder, more in (("eager", []), ("compiled", ["--compile"])):
        assert reproduce(cifar10, tmp_path / folder, *words, *more) == 0
    for name in (NAME, NAME.replace("manifold", "input")):
        eager, compiled = (log_of(tmp_path / part / name)[0] for part in ("eager", "compiled"))
        first, second = (float(log["train_loss"]) for log in (eager, compiled))
        assert first == pytest.approx(second, rel=1e-3)


def test_the_report_is_of_the_folder_named(tmp_path, monkeypatch):
    named = []
    monkeypatch.setattr(report, "main", named.append)
    assert cli.main(["reproduce", "report", str(tmp_path)]) == 0
    assert named == [tmp_path]
