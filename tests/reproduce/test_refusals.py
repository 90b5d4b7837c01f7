"""Bad input: one sentence, exit code 2, and nothing written or overwritten."""

import shutil

import pytest
import torch

from benchmarks.reproduce import engine, ranks
from tests.reproduce.running import command, reproduce
from tests.support import refusal

NAME = "cifar10-preactresnet18-erm-seed0"


def refused(capsys, data, out, *words, dataset="cifar10"):
    """The one line that is said."""
    capsys.readouterr()
    return refusal.refused(capsys, *command(data, out, *words, dataset=dataset))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "erm,mixup"], "manifold-mixup, cutmix, weight-decay"),
        (["--method", "erm,mixup"], "got 'mixup'"),
        (["--method", "erm,erm"], "different methods, got 'erm,erm'"),
        (["--network", "resnet"], "invalid choice: 'resnet'"),
        (["--seeds", "0,x"], "different whole numbers from 0, as in 0,1,2, got '0,x'"),
        (["--seeds", "1,1"], "got '1,1'"),
        (["--seeds", "-1"], "got '-1'"),
        (["--epochs", "0"], "argument --epochs: must be a whole number from 1, got '0'"),
        (["--epochs", "1.5"], "a whole number from 1, got '1.5'"),
        (["--alpha", "0"], "argument --alpha: must be a number above 0, got '0'"),
        (["--alpha", "nan"], "a number above 0, got 'nan'"),
        (["--alpha", "inf"], "a number above 0, got 'inf'"),
        (["--lr", "-0.1"], "argument --lr: must be a number above 0, got '-0.1'"),
        (["--width", "0"], "argument --width: must be a whole number from 1"),
        (["--steps", "0"], "argument --steps: must be a whole number from 1"),
        (["--batch", "0"], "argument --batch: must be a whole number from 1"),
        (["--batch", "65"], "--batch must be at most the 64 training images, got 65"),
        (["--layers", "input,input"], "different layers, as in input,layer1"),
        (
            ["--layers", "input,layer5"],
            "--layers must be of input, conv1, layer1, layer2, layer3, layer4, bn, linear "
            "or parts, got 'layer5'",
        ),
        (["--method", "erm,cutmix", "--layers", "layer1"], "--layers has no meaning for --method"),
        (["--method", "erm,dropout", "--alpha", "1"], "no meaning for --method erm,dropout"),
        (["--device", "cuda:99"], "cuda:99 is not there"),
        (["--device", "tpu"], "must be cpu, cuda or cuda:N, got 'tpu'"),
        (["--amp", "float8"], "invalid choice: 'float8'"),
        (["--amp", "float16"], "--amp float16 needs a GPU: take bfloat16 on the CPU"),
        (["--steps", "3", "--resume"], "--steps is a trial of its own: it takes no --resume"),
        (
            ["--resume"],
            f"{NAME.replace('erm', 'manifold-mixup')}/checkpoint.pt, which is not there",
        ),
        (["--resume", "--seeds", "0,1"], "--resume needs a checkpoint, but "),
    ],
)
def test_options(cifar10, tmp_path, capsys, words, said):
    assert said in refused(capsys, cifar10, tmp_path / "runs", *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reproduce"], "required: SET"),
        (["reproduce", "mnist"], "invalid choice: 'mnist'"),
        (["reproduce", "cifar10"], "required: --data"),
        (["reproduce", "report"], "required: folder"),
        (["reproduce", "cifar10", "--data", "x", "--decay", "1"], "unrecognized arguments"),
    ],
)
def test_commands(capsys, words, said):
    assert said in refusal.refused(capsys, *words)


def test_data_of_another_set_or_none(cifar10, tmp_path, capsys):
    said = refused(capsys, tmp_path / "none", tmp_path / "runs")
    assert f"{tmp_path / 'none'} must be the folder of the data, but" in said
    said = refused(capsys, cifar10, tmp_path / "runs", dataset="cifar100")
    assert (
        f"{cifar10} must hold cifar-100-python/ or " in said
        and "but holds cifar-10-batches-py" in said
    )
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def trained(cifar10, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    assert reproduce(cifar10, out, "--epochs", "1", "--method", "erm") == 0
    return out


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


ERM = ("--epochs", "1", "--method", "erm")


def kept(capsys, cifar10, out, *words):
    """What is said; the folder is left as it is."""
    old = content(out / NAME)
    said = refused(capsys, cifar10, out, *words)
    assert content(out / NAME) == old and [path.name for path in out.iterdir()] == [NAME]
    return said


def test_a_folder_that_exists(cifar10, copy, capsys):
    said = kept(capsys, cifar10, copy, *ERM)
    assert f"{copy / NAME} exists: give --resume to go on, or another --out" in said
    said = kept(capsys, cifar10, copy, "--epochs", "1", "--method", "cutmix,erm")
    assert f"{NAME} exists" in said  # before the first run trains


def test_a_folder_that_cannot_be_made(cifar10, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        reproduce(cifar10, tmp_path / "file", *ERM)
    assert stop.value.code == 2
    said = f"--out must be where folders can be made, but {tmp_path / 'file' / NAME}: Not a dir"
    assert said in capsys.readouterr().err


def test_a_checkpoint_of_another_configuration(cifar10, copy, capsys):
    words = ("--epochs", "3", "--method", "erm", "--lr", "0.5", "--resume")
    said = kept(capsys, cifar10, copy, *words)
    assert "is of a run with other options: epochs 1 there, 3 here, lr 0.1 there, 0.5 here" in said


def test_a_damaged_checkpoint(cifar10, copy, capsys):
    path = copy / NAME / "checkpoint.pt"
    whole = path.read_bytes()
    other = torch.load(path, weights_only=True)
    del other["optimizer"]
    torch.save(other, copy / "other")
    lacking = (copy / "other").read_bytes()
    (copy / "other").unlink()
    for damaged in (whole[: len(whole) // 2], b"", b"no checkpoint", lacking):
        path.write_bytes(damaged)
        said = kept(capsys, cifar10, copy, *ERM, "--resume")
        assert "checkpoint.pt is damaged, or is no checkpoint of this command: delete" in said


class Evil:
    def __reduce__(self):
        return (print, ("code of a checkpoint runs",))


def test_a_checkpoint_runs_no_code(cifar10, copy, capsys):
    path = copy / NAME / "checkpoint.pt"
    torch.save(torch.load(path, weights_only=True) | {"scaler": Evil()}, path)
    assert "is damaged" in kept(capsys, cifar10, copy, *ERM, "--resume")


def test_a_folder_without_a_checkpoint(cifar10, copy, capsys):
    (copy / NAME / "checkpoint.pt").unlink()
    assert "--resume needs " in kept(capsys, cifar10, copy, *ERM, "--resume")
    said = kept(capsys, cifar10, copy, "--epochs", "1", "--method", "erm,cutmix", "--resume")
    assert f"{NAME}/checkpoint.pt, which is not there" in said


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda lines: lines[:1], id="a line is missing"),
        pytest.param(lambda lines: lines[1:], id="the header is missing"),
        pytest.param(lambda lines: [lines[0], lines[1].replace("1", "2", 1)], id="another epoch"),
        pytest.param(lambda lines: None, id="no log"),
    ],
)
def test_a_log_that_does_not_fit_the_checkpoint(cifar10, copy, capsys, damage):
    path = copy / NAME / "log.csv"
    lines = damage(path.read_text().splitlines(keepends=True))
    if lines is None:
        path.unlink()
    else:
        path.write_text("".join(lines))
    said = kept(capsys, cifar10, copy, *ERM, "--resume")
    assert f"{path} must have a line for each of the 1 epochs of the checkpoint" in said


def test_a_training_that_diverges_says_so(cifar10, tmp_path, capsys, monkeypatch):
    plain = engine.Trainer._step

    def step(self, images, labels):
        loss, accuracy = plain(self, images, labels)
        return loss * float("nan"), accuracy

    monkeypatch.setattr(engine.Trainer, "_step", step)
    assert reproduce(cifar10, tmp_path, "--epochs", "2", "--method", "erm") == 1
    error = capsys.readouterr().err
    assert f"{NAME} diverged: in epoch 1 the loss is nan; take a smaller --lr\n" in error
    assert error.count("\n") == 1


def test_cuda_needs_a_gpu_for_each_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = []
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        found.append(str(ranks.device_of("cuda")))
    assert found == ["cuda:0", "cuda:1"] and str(ranks.device_of("cuda:0")) == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ranks.BadOption, match="must have a GPU for each process, found 2"):
        ranks.device_of("cuda")
