"""The Lightning callback in real runs of a few steps, and in runs that fail."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mmix_fast as m

pytestmark = pytest.mark.deep
pl = pytest.importorskip("pytorch_lightning")

from mmix_fast.integrations.lightning import ManifoldMixupCallback  # noqa: E402

LOADER = DataLoader(TensorDataset(torch.randn(24, 6), torch.randint(0, 3, (24,))), 8)


def net():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


class Model(pl.LightningModule):
    attribute = "mixup"

    def __init__(self):
        super().__init__()
        self.net = net()
        self.seen, self.checks, self.fail = [], [], None

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        x, y = batch
        mixup = getattr(self, self.attribute)
        z = self(x)
        loss = mixup.loss(z, y)
        self.seen.append((mixup.layer, hooks(self)))
        torch.testing.assert_close(loss, mixup.mix.cross_entropy(z, y))
        if self.fail:
            raise self.fail
        return loss

    def validation_step(self, batch, _):
        x, y = batch
        z = self(x)
        mixup = getattr(self, self.attribute)
        self.checks.append((mixup.loss(z, y), F.cross_entropy(z, y), mixup.layer))

    test_step = validation_step

    def predict_step(self, batch, _):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def hooks(model):
    return len(model.net[1]._forward_hooks)


def trainer(*callbacks, epochs=1):
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize("attribute", [None, "net"])
def test_fit_and_validate(attribute):
    model, names = Model(), ["", "net.1"] if attribute is None else ["", "1"]
    generator = torch.Generator().manual_seed(0)
    callback = ManifoldMixupCallback(names, alpha=1.0, module=attribute, generator=generator)
    run = trainer(callback, epochs=3)
    run.fit(model, LOADER, LOADER)
    assert {layer for layer, _ in model.seen} == set(names) and len(model.seen) == 9
    assert {count for _, count in model.seen} == {1} and hooks(model) == 0
    run.validate(model, LOADER, verbose=False)
    run.test(model, LOADER, verbose=False)
    run.predict(model, LOADER)
    for ours, plain, layer in model.checks:
        torch.testing.assert_close(ours, plain)
        assert layer is None
    assert hooks(model) == 0
    # After the run it is closed: the loss is plain cross-entropy, also in training mode.
    x, y = next(iter(LOADER))
    model.train()
    torch.testing.assert_close(model.mixup.loss(model(x), y), F.cross_entropy(model(x), y))


class Stop(BaseException):
    pass


@pytest.mark.parametrize("failure", [KeyError("boom"), KeyboardInterrupt(), Stop()])
@pytest.mark.parametrize("same", [False, True])
def test_fit_again_after_an_exception(failure, same):
    model = Model()
    model.fail = failure
    callback = ManifoldMixupCallback(["net.1"])
    with pytest.raises((type(failure), SystemExit)):
        trainer(callback).fit(model, LOADER)
    assert hooks(model) == 0
    model.fail, model.seen = None, []
    for _ in range(2):
        trainer(callback if same else ManifoldMixupCallback(["net.1"])).fit(model, LOADER)
    assert model.seen == [("net.1", 1)] * 6


def test_setup_closes_the_manifoldmixup_of_an_earlier_run():
    """After a run that was killed, as in a notebook: the callback was not told of its end."""
    model, first = Model(), ManifoldMixupCallback(["net.1"])
    first.setup(trainer(first), model, "fit")
    assert hooks(model) == 1
    trainer(ManifoldMixupCallback(["net.1"])).fit(model, LOADER)
    assert model.seen == [("net.1", 1)] * 3


class Method(Model):
    def mixup(self, x):
        return x


class Placeholder(Model):
    mixup = None


def test_an_attribute_that_is_taken_raises():
    module, mine = Model(), Model()
    module.mixup = nn.Identity()
    mine.mixup = m.ManifoldMixup(mine, ["net.1"])
    kinds = {"method": Method(), "Identity": module, "ManifoldMixup": mine}
    for kind, model in kinds.items():
        message = rf"\.mixup must be free for the ManifoldMixup, got {kind}; give .* attribute="
        with pytest.raises(TypeError, match=message):
            trainer(ManifoldMixupCallback(["net.1"])).fit(model, LOADER)
    module.attribute = "mixer"
    trainer(ManifoldMixupCallback(["net.1"], attribute="mixer")).fit(module, LOADER)
    assert module.seen == [("net.1", 1)] * 3 and type(module.mixup) is nn.Identity
    model = Placeholder()
    trainer(ManifoldMixupCallback(["net.1"])).fit(model, LOADER)
    assert model.seen == [("net.1", 1)] * 3


def test_two_callbacks_need_two_attributes():
    model = Model()
    with pytest.raises(ValueError, match="one ManifoldMixupCallback may set 'mixup', got two"):
        trainer(ManifoldMixupCallback(["net.1"]), ManifoldMixupCallback(["net.0"])).fit(
            model, LOADER
        )
    assert hooks(model) == 0
    model.head = net()
    first = ManifoldMixupCallback(["1"], module="net")
    second = ManifoldMixupCallback(["1"], module="head", attribute="other")
    trainer(first, second).fit(model, LOADER)
    assert model.seen == [("1", 1)] * 3 and isinstance(model.other, m.ManifoldMixup)
    assert not model.head[1]._forward_hooks


class Late(Model):
    def __init__(self):
        super().__init__()
        del self.net

    def configure_model(self):
        if not hasattr(self, "net"):
            self.net = net()


class LateSetup(Late):
    configure_model = pl.LightningModule.configure_model

    def setup(self, stage):
        Late.configure_model(self)


@pytest.mark.parametrize("kind", [Late, LateSetup])
def test_layers_made_in_configure_model_or_setup(kind):
    for loop in ("fit", "validate", "test", "predict"):
        model = kind()
        getattr(trainer(ManifoldMixupCallback(["net.1"])), loop)(model, LOADER)
        assert hooks(model) == 0 and isinstance(model.mixup, m.ManifoldMixup)
        assert model.seen == [("net.1", 1)] * 3 * (loop == "fit")


def test_copies_and_checkpoints(tmp_path):
    model, callback = Model(), ManifoldMixupCallback(["net.1"])
    keys = list(model.state_dict())
    run = trainer(callback)
    run.fit(model, LOADER)
    run.save_checkpoint(tmp_path / "last.ckpt")
    assert list(model.state_dict()) == keys
    other = Model()
    trainer(pickle.loads(pickle.dumps(callback))).fit(
        other, LOADER, ckpt_path=tmp_path / "last.ckpt"
    )
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.seen = []
        trainer(copy.deepcopy(callback)).fit(copied, LOADER)
        assert copied.seen == [("net.1", 1)] * 3 and hooks(model) == 0
