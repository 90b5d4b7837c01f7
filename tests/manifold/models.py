"""Models and checks that several tests of ManifoldMixup share."""

import torch
import torch.nn.functional as F
from torch import nn

import mmix_fast as m
from benchmarks.models import MLP, Encoder, PreActResNet18

# A batch for the MLP.
X, Y = torch.randn(6, 16), torch.tensor([0, 1, 2, 3, 4, 0])


def make(kind):
    """A model of this kind, and a batch for it: inputs, labels."""
    if kind is MLP:
        return MLP(), torch.randn(6, 16), torch.randint(0, 5, (6,))
    if kind is PreActResNet18:
        return PreActResNet18(4), torch.randn(6, 3, 16, 16), torch.randint(0, 10, (6,))
    return Encoder(), torch.randint(0, 11, (6, 7)), torch.randint(0, 4, (6,))


def mixed_mlp(layers=("1",), **options):
    """An MLP, and its ManifoldMixup."""
    model = MLP()
    return model, m.ManifoldMixup(model, list(layers), **options)


def is_loss_of(mixup, logits, draw, y=Y):
    """Whether mixup.loss takes this draw for the logits; None: whether the loss is plain."""
    got = mixup.loss(logits, y)
    plain = F.cross_entropy(logits, y)
    return torch.allclose(got, plain if draw is None else draw.cross_entropy(logits, y))


class Tree(nn.Module):
    """``layer2`` runs twice, ``unused`` never; ``table`` returns no tensor with the batch."""

    def __init__(self):
        super().__init__()
        self.stem, self.layer1, self.layer2 = (nn.Linear(4, 4) for _ in range(3))
        self.unused = nn.Linear(4, 4)
        self.table = Table()

    def forward(self, x):
        x = self.layer2(self.layer2(self.layer1(self.stem(x))))
        return x + self.table(x)


class Table(nn.Module):
    def forward(self, x):
        return x.sum(0, keepdim=True)[:, :1], {"n": torch.arange(len(x))}

    def __call__(self, x):
        return super().__call__(x)[0]
