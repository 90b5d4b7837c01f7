"""Trains and tests one network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import augment
from .data import ImageSet, Split
from .mixing import Mixing, prepare
from .networks import build
from .ranks import Ranks, Stopped
from .settings import MOMENTUM, RECIPES, Config, method_of

TEST_BATCH = 500
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """How a run is computed."""

    device: torch.device
    compiled: bool = False
    channels_last: bool = False
    ranks: Ranks = Ranks()  # noqa: RUF009 (frozen)

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def holding(self, images: ImageSet) -> ImageSet:
        """The set on this device, as uint8: a batch becomes float when it is used."""

        def split(part: Split) -> Split:
            return Split(part.images.to(self.device), part.labels.to(self.device))

        return ImageSet(
            images.name,
            split(images.train),
            split(images.test),
            images.classes,
            images.mean,
            images.std,
        )


class Trainer:
    """A network in training. `images` lie on the machine's device."""

    def __init__(self, config: Config, images: ImageSet, machine: Machine) -> None:
        self.config, self.images, self.machine = config, images, machine
        self.ranks, device = machine.ranks, machine.device
        self.recipe = RECIPES[config.dataset]
        method = method_of(config.dataset, config.network, config.method)
        torch.manual_seed(config.seed_of("weights"))
        self.network = build(config, images.classes).to(device, memory_format=machine.layout)
        prepare(self.network, config, method)
        if machine.compiled:
            self.network.compile()
        self.model: nn.Module = self.network
        if self.ranks.world > 1:
            self.model = DistributedDataParallel(self.network)
        self.mixing = Mixing(self.model, config, method)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            config.lr,
            MOMENTUM,
            weight_decay=method.weight_decay,
            nesterov=True,
        )
        # Only float16 has too few exponents for small gradients.
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "float16")
        self.order, self.crops = torch.Generator(), torch.Generator()

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return -(-self.ranks.even(len(self.images.train.labels)) // self.config.batch)

    def _batches(self) -> tuple[Tensor, ...]:
        rows = torch.randperm(len(self.images.train.labels), generator=self.order)
        # A last batch that the ranks cannot share evenly loses its rest: a gradient is the mean
        # over ranks, and all must make as many steps.
        return rows[: self.ranks.even(len(rows))].split(self.config.batch)

    def _seed(self, epoch: int) -> None:
        seed_of = self.config.seed_of
        self.order.manual_seed(seed_of(epoch, "order"))
        self.crops.manual_seed(seed_of(epoch, "crops"))
        self.mixing.generator.manual_seed(seed_of(epoch, "mixing"))
        torch.manual_seed(seed_of(epoch, "dropout and noise", self.ranks.rank))

    def epoch(self, epoch: int) -> Iterator[Tensor]:
        """Trains for an epoch, counted from 0. After each step, yields the sums over this rank's
        samples so far: (of their losses, of right answers, their number), on the device."""
        self._seed(epoch)
        self.network.train()
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(epoch)
        sums = torch.zeros(3, dtype=torch.float64, device=self.machine.device)
        for rows in self._batches():
            images, labels = self._batch(rows)
            loss, accuracy = self._step(images, labels)
            count = torch.full((), len(labels), dtype=torch.float64, device=loss.device)
            sums += torch.stack([loss.double() * count, accuracy.double() * count, count])
            yield sums

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        # Drawn for the whole batch, so that an image's crop does not depend on the ranks.
        drawn = augment.draw(len(rows), self.recipe.pad, self.recipe.flip, self.crops)
        train = self.images.train
        mine = self.ranks.share(rows).to(train.images.device)
        images = augment.crop(train.images[mine], self.ranks.share(drawn), self.recipe.pad)
        return self._floats(images), train.labels[mine]

    def _floats(self, images: Tensor) -> Tensor:
        floats = augment.normalized(images, self.images.mean, self.images.std)
        return floats.contiguous(memory_format=self.machine.layout)

    def _autocast(self) -> torch.autocast:
        half = HALF.get(self.config.amp)
        return torch.autocast(self.machine.device.type, half, enabled=half is not None)

    def _step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad()
        with self._autocast():
            loss, accuracy = self.mixing.loss(images, labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), accuracy

    def means(self, sums: Tensor, epoch: int) -> tuple[float, float]:
        """The mean loss, and the λ-weighted accuracy in percent, over all ranks."""
        loss, right, count = self.ranks.add(sums.clone()).tolist()
        if not abs(loss) < float("inf"):
            raise Stopped(
                f"{self.config.name} diverged: in epoch {epoch + 1} the loss is {loss / count}; "
                "take a smaller --lr"
            )
        return loss / count, 100 * right / count

    @torch.no_grad()
    def test(self, batches: int | None = None) -> dict[str, float | None]:
        """On the test set, or on its first `batches`; errors in percent. The network never mixes
        here: it is called without its DistributedDataParallel, and in eval mode."""
        self.ranks.same(list(self.network.buffers()))  # each rank has seen other statistics
        self.model.eval()
        test, classes = self.images.test, self.images.classes
        sums = torch.zeros(4, dtype=torch.float64, device=self.machine.device)
        for rows in torch.arange(len(test.labels)).split(TEST_BATCH)[:batches]:
            mine = self.ranks.share(rows).to(test.images.device)
            labels = test.labels[mine]
            with self._autocast():
                logits = self.network(self._floats(test.images[mine]))
            nll = F.cross_entropy(logits.double(), labels, reduction="sum")
            best = logits.topk(min(5, classes)).indices == labels[:, None]
            count = torch.full((), len(mine), device=nll.device)
            sums += torch.stack([nll, (~best[:, 0]).sum(), (~best.any(1)).sum(), count])
        nll, errors, errors5, count = self.ranks.add(sums).tolist()
        return {
            "test_nll": nll / count,
            "test_error": 100 * errors / count,
            "test_top5_error": 100 * errors5 / count if classes > 10 else None,
        }

    def state(self) -> dict:
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict) -> None:
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def close(self) -> None:
        """The trainer is of no use then; its network stays."""
        if self.mixing.mixup is not None:
            self.mixing.mixup.close()
        del self.model, self.mixing  # DistributedDataParallel holds the process group open
        if self.machine.compiled:  # hooks of the next run's network are not those compiled
            torch.compiler.reset()
