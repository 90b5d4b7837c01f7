"""The examples of the docstrings run, and give what they show."""

import doctest
import inspect
import types

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import mmix_fast
from benchmarks import process_group
from mmix_fast import validation
from tests.documentation.public_api import MODULES, NAMES, load

METHODS = [
    f"mmix_fast.{owner.__name__}.{name}"
    for owner in (mmix_fast.Mix, mmix_fast.MixedTarget, mmix_fast.ManifoldMixup)
    for name, method in vars(owner).items()
    if not name.startswith("_") and ">>> " in (inspect.getdoc(method) or "")
]
# The others use all of these.
NO_EXAMPLE = (
    "mmix_fast",
    "mmix_fast.reference",
    "mmix_fast.distributed",
    "mmix_fast.dispatch.Status",
    "mmix_fast.integrations.lightning.ManifoldMixupCallback",
    "mmix_fast.integrations.transformers.MixupTrainer",
)
ELSEWHERE = ("mmix_fast.integrations.torchvision.CutMix",)  # tests/integrations/test_torchvision.py


class Stages(nn.Module):
    """A model of images whose two stages have the names that the examples use."""

    def __init__(self, outputs):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.GELU())
        self.head = nn.Linear(4, outputs)

    def forward(self, x):
        return self.head(self.layer2(self.layer1(x)).mean((2, 3)))


def create_model(name, num_classes):
    """timm's, for the one model that the examples name."""
    assert (name, num_classes) == ("vit_small_patch16_224", 0)
    return Stages(384)


def names():
    """What the examples take as given. The batches have 8 images of 1000 classes."""
    x, y = torch.rand(8, 3, 32, 32), torch.arange(8)
    perm, lam = torch.arange(8).flip(0), torch.tensor(0.3)
    return {
        "torch": torch,
        "nn": nn,
        "F": F,
        "mmix_fast": mmix_fast,
        "model": Stages(1000),
        "backbone": Stages(6),
        "head": nn.Linear(6, 100_000),
        "loader": [(x, y), (x, y)],
        "x": x,
        "y": y,
        "y_a": y,
        "y_b": y[perm],
        "perm": perm,
        "lam": lam,
        "images": x.clone(),
        "images_1": x,
        "images_2": x.flip(0),
        "labels": y,
        "labelled": x,
        "unlabelled": torch.rand(12, 3, 32, 32),
        "logits": torch.randn(8, 1000),
        "local_logits": torch.randn(8, 100_000),
        "features": torch.randn(8, 6),
        "rank": 0,
        "multi_hot": torch.rand(8, 1000) < 0.3,
        "pos_weight": torch.rand(1000),
        "target": torch.rand(8, 1000),
        "criterion": nn.CrossEntropyLoss(),
        "timm": types.SimpleNamespace(create_model=create_model),
    }


@pytest.fixture
def one_process():
    """A process group of this process alone: its shard has all the classes."""
    process_group.enter("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    process_group.leave()


def of_transformers(folder):
    from tests.integrations.hf_models import classifier, rows, single, training_arguments

    args = training_arguments(folder, max_steps=1)
    return {"model": classifier(), "args": args, "data": rows(single, 8)}


def of_lightning(folder):
    import pytorch_lightning as lightning

    return {"Trainer": lightning.Trainer, "LightningModule": lightning.LightningModule}


def of_torchmetrics(folder):
    import torchmetrics

    mix = mmix_fast.sample_mix(8, 1.0)
    return {"MetricCollection": torchmetrics.MetricCollection, "mix": mix}


def of_torchvision(folder):
    from torchvision.transforms import v2

    return {"v2": v2}


OTHERS = {
    "transformers": of_transformers,
    "lightning": of_lightning,
    "torchmetrics": of_torchmetrics,
    "torchvision": of_torchvision,
}


class Checker(doctest.OutputChecker):
    def check_output(self, want, got, options):
        return not want or super().check_output(want, got, options)  # a result need not be shown


@pytest.mark.parametrize("name", [n for n in [*MODULES, *NAMES, *METHODS] if n not in ELSEWHERE])
def test_examples(name, request, monkeypatch, tmp_path):
    owner, _, method = name.rpartition(".")
    found = getattr(load(owner), method) if name in METHODS else load(name)
    doc = inspect.getdoc(found)
    assert (">>> " in doc) == (name not in NO_EXAMPLE)
    given = names() | vars(mmix_fast) | vars(inspect.getmodule(found))
    for library, more in OTHERS.items():
        if f"integrations.{library}" in name:
            given |= more(tmp_path)
    if "distributed" in name:
        request.getfixturevalue("one_process")
    monkeypatch.setattr(validation, "_validate_everywhere", False)  # an example sets it
    if name in METHODS:
        given["mixup"] = mmix_fast.ManifoldMixup(given["model"], ["layer1"])
        given["mix"] = mmix_fast.sample_mix(8, 1.0)
    elif name == "mmix_fast.MixedTarget":
        given["Mixup"] = load("mmix_fast.integrations.timm.Mixup")
    run(doc, given)


def run(doc, given):
    """Runs a docstring's examples; returns all names afterwards."""
    problems = []
    test = doctest.DocTestParser().get_doctest(doc, given, "example", None, None)
    doctest.DocTestRunner(Checker()).run(test, out=problems.append, clear_globs=False)
    assert not problems, "".join(problems)
    return test.globs


def test_the_lightning_example_mixes(tmp_path):
    """It only makes the callback and the class; the callback's options are read later."""
    module = load("mmix_fast.integrations.lightning")
    names = run(inspect.getdoc(module), vars(module) | of_lightning(tmp_path))
    model = names["Model"]()
    model.layer1, model.layer2 = nn.Linear(4, 4), nn.Linear(4, 3)
    model.forward = lambda x: model.layer2(model.layer1(x))
    trainer = names["trainer"]
    (callback,) = (c for c in trainer.callbacks if isinstance(c, module.ManifoldMixupCallback))
    callback.setup(trainer, model)
    loss = model.training_step((torch.randn(8, 4), torch.arange(8) % 3), 0)
    assert loss.isfinite() and model.mixup.layer in ("", "layer1", "layer2")
