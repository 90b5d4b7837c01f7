"""A trainer's optimizer, learning rate and test, against plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.reproduce import engine
from benchmarks.reproduce.data import ImageSet, read
from benchmarks.reproduce.engine import Machine, Trainer
from benchmarks.reproduce.ranks import Ranks, Stopped
from benchmarks.reproduce.settings import METHODS
from tests.reproduce.running import config
from tests.support.image_files import random_split


def trainer_of(images, **changes):
    machine = Machine(torch.device("cpu"))
    return Trainer(config(batch=16, **changes), machine.holding(images), machine)


@pytest.fixture
def images(cifar10):
    return read("cifar10", cifar10)


@pytest.mark.parametrize(("method", "decay"), [("erm", 1e-4), ("weight-decay", 5e-4)])
def test_the_optimizer_is_that_of_the_paper(images, method, decay):
    trainer = trainer_of(images, method=method, lr=0.2)
    (group,) = trainer.optimizer.param_groups
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    names = ("lr", "momentum", "nesterov", "weight_decay", "dampening")
    assert [group[name] for name in names] == [0.2, 0.9, True, decay, 0]
    assert len(group["params"]) == len(list(trainer.network.parameters()))


def test_each_epoch_has_the_learning_rate_of_the_schedule(images):
    trainer = trainer_of(images, epochs=3)
    found = []
    for epoch in range(3):
        next(trainer.epoch(epoch))
        found.append(trainer.optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([0.1, 0.01, 0.001])


def test_an_epoch_sums_losses_and_right_answers(images):
    trainer = trainer_of(images)
    losses = []
    plain = trainer._step

    def step(x, y):
        losses.append(plain(x, y))
        return losses[-1]

    trainer._step = step
    *_, sums = trainer.epoch(0)
    loss, accuracy = trainer.means(sums, 0)
    assert loss == pytest.approx(sum(loss.item() for loss, _ in losses) / 4)
    assert accuracy == pytest.approx(100 * sum(right.item() for _, right in losses) / 4)


@pytest.mark.parametrize("loss", [float("inf"), float("nan")])
def test_a_loss_that_is_no_number_ends_the_run(images, loss):
    sums = torch.tensor([loss, 3, 64], dtype=torch.float64)
    with pytest.raises(Stopped, match=f"erm-seed0 diverged: in epoch 8 the loss is {loss}"):
        trainer_of(images).means(sums, 7)


def test_every_image_is_trained_on_once_an_epoch_in_another_order(images):
    trainer = trainer_of(images)
    orders = []
    for epoch in (0, 1, 0):
        trainer._seed(epoch)
        orders.append(torch.cat(trainer._batches()))
    assert all(torch.equal(order.sort().values, torch.arange(64)) for order in orders)
    assert torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[1])


@pytest.mark.parametrize("method", ["erm", "manifold-mixup", "dropout"])
def test_the_test_is_that_of_a_network_in_eval_mode(monkeypatch, method):
    monkeypatch.setattr(engine, "TEST_BATCH", 15)  # the last of 40 images make a smaller batch
    splits = random_split(64, 20, 0), random_split(40, 20, 1)
    images = ImageSet("cifar10", *splits, 20, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
    chosen = METHODS[method]
    trainer = trainer_of(images, method=method, alpha=chosen.alpha, layers=chosen.layers)
    list(trainer.epoch(0))
    found = trainer.test()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (images.mean, images.std))
    labels = images.test.labels
    trainer.network.eval()
    with torch.no_grad():
        logits = trainer.network((images.test.images / 255 - mean) / std)
    places = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert found == pytest.approx(
        {
            "test_nll": F.cross_entropy(logits, labels).item(),
            "test_error": 100 * (places >= 1).float().mean().item(),
            "test_top5_error": 100 * (places >= 5).float().mean().item(),
        },
        rel=1e-5,
    )
    assert 0 < found["test_top5_error"] < found["test_error"]
    assert trainer.test(batches=1)["test_nll"] == pytest.approx(
        F.cross_entropy(logits[:15], labels[:15]).item(), rel=1e-5
    )
    trainer.close()


def test_all_ranks_test_with_the_statistics_of_the_first(images, monkeypatch):
    sent = []
    monkeypatch.setattr(Ranks, "same", lambda self, values: sent.extend(values))
    trainer = trainer_of(images)
    trainer.test()
    assert {id(b) for b in sent} == {id(b) for b in trainer.network.buffers()} and sent
