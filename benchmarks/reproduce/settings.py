"""What is trained, and how: the settings of the paper and of its authors' code, with their source.

"Code" is supervised/ of github.com/vikasverma1077/manifold_mixup: main.py, load_data.py, models/
and README.md. "Paper" is Verma et al., Manifold Mixup, ICML 2019 (arXiv 1806.05236v7).
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field, replace

# Code: defaults of main.py. Nesterov's momentum is set there too, the paper does not name it.
BATCH, RATE, MOMENTUM, WEIGHT_DECAY = 100, 0.1, 0.9, 1e-4


@dataclass(frozen=True)
class Schedule:
    """SGD for so many epochs; the learning rate falls to a tenth at each of `drops`."""

    epochs: int
    drops: tuple[int, ...]

    def drops_by(self, epoch: int, epochs: int) -> int:
        """How many came before an epoch (from 0) of a run of `epochs`, in proportion."""
        return sum(epoch * self.epochs >= drop * epochs for drop in self.drops)


@dataclass(frozen=True)
class Network:
    depths: tuple[int, ...]  # blocks in each stage
    width: int  # channels of the first stage
    stem: int | None = None  # channels before it, if not the same
    mixed: tuple[str, ...] | None = None  # by Manifold Mixup, if not those of METHODS
    schedule: Schedule = Schedule(1200, (400, 800))  # paper, appendix C; code: 2,000 epochs


NETWORKS = {
    # Code: models/preresnet.py, without its missing norm and ReLU before the classifier, which are
    # part of He et al., Identity mappings in deep residual networks, ECCV 2016.
    "preactresnet18": Network((2, 2, 2, 2), 64),
    "preactresnet34": Network((3, 4, 6, 3), 64),
    # Zagoruyko and Komodakis, Wide residual networks, BMVC 2016. Schedule: code, README.md;
    # its 400 epochs and its layers also in appendix C of the paper.
    "wideresnet28-10": Network((4, 4, 4), 160, 16, ("", "layer1"), Schedule(400, (200, 300))),
}


@dataclass(frozen=True)
class Method:
    layers: tuple[str, ...] = ()  # to mix, or to add noise to; "" is the input
    alpha: float | None = None  # λ ~ Beta(alpha, alpha)
    weight_decay: float = WEIGHT_DECAY
    dropout: float = 0.0
    noise: float = 0.0  # standard deviation; the input is normalised
    norm: str = "batch"


# All but the first four are the regularizers that the paper compares its representations with. It
# gives no strengths for these networks: those here are common ones, and not tuned.
METHODS = {
    "erm": Method(),
    "input-mixup": Method(("",), 1.0),  # code: README.md
    # Paper, appendix C, for its PreActResNets; alpha: code, README.md.
    "manifold-mixup": Method(("", "layer1", "layer2"), 2.0),
    "cutmix": Method(alpha=1.0),  # Yun et al., CutMix, ICCV 2019, section 4
    "weight-decay": Method(weight_decay=5e-4),  # that of Wide residual networks
    "dropout": Method(dropout=0.3),  # between the two convolutions, as in Wide residual networks
    "input-noise": Method(("",), noise=0.1),
    "hidden-noise": Method(("layer1", "layer2"), noise=0.1),
    "group-norm": Method(norm="group"),  # in place of batch norm, which all others have
}


@dataclass(frozen=True)
class Recipe:
    """Of an image set. Code: load_data_subset of load_data.py, which pads by zeros and crops."""

    pad: int
    flip: bool
    stride: int = 1  # of the first convolution
    schedule: Schedule | None = None  # None: the network's
    methods: dict[str, Method] = field(default_factory=dict)  # where they differ from METHODS


RECIPES = {
    "cifar10": Recipe(2, True),
    "cifar100": Recipe(2, True),
    "svhn": Recipe(2, False),  # a digit's mirror image is no digit
    "tiny-imagenet": Recipe(
        4,
        True,
        stride=2,  # code: main.py, so that stages have the sizes that they have for 32x32
        schedule=Schedule(2000, (1000, 1500)),  # code: README.md
        methods={
            "input-mixup": Method(("",), 0.2),  # code: README.md
            "manifold-mixup": Method(("", "layer1", "layer2"), 0.2),  # layers: as in METHODS
        },
    ),
}


def method_of(dataset: str, network: str, name: str) -> Method:
    method = RECIPES[dataset].methods.get(name, METHODS[name])
    mixed = NETWORKS[network].mixed
    return replace(method, layers=mixed) if mixed and name == "manifold-mixup" else method


def schedule_of(dataset: str, network: str) -> Schedule:
    return RECIPES[dataset].schedule or NETWORKS[network].schedule


@dataclass(frozen=True)
class Config:
    """All that a run's result depends on; a checkpoint of another one is refused."""

    dataset: str
    network: str
    method: str
    alpha: float | None
    layers: tuple[str, ...]
    seed: int
    epochs: int
    batch: int
    lr: float
    width: int
    amp: str
    train_images: int
    test_images: int

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.network}-{self.method}-seed{self.seed}"

    def rate(self, epoch: int) -> float:
        drops = schedule_of(self.dataset, self.network).drops_by(epoch, self.epochs)
        return self.lr / 10**drops

    def as_json(self) -> dict:
        return asdict(self) | {"layers": list(self.layers)}

    def seed_of(self, *purpose: object) -> int:
        """A seed of its own for each use of random numbers.

        A generator is seeded anew in each epoch: so a run that goes on after a checkpoint draws
        what it would have drawn, and no generator's state needs to be kept, on any rank or device.
        """
        return random.Random(" ".join(map(str, (self.seed, *purpose)))).getrandbits(63)
