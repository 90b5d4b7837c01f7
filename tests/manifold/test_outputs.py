"""What is mixed: the outputs of the drawn layer, or the inputs of the model."""

from collections import OrderedDict, namedtuple

import torch
import torch.nn.functional as F
from torch import nn

import mmix_fast as m
from benchmarks.models import MLP
from tests.manifold.models import make


def test_calls_outside_the_root_mix_nothing():
    model, x, _ = make(MLP)
    m.ManifoldMixup(model, ["0"])
    model(x)
    assert torch.equal(model[0](x), F.linear(x, model[0].weight, model[0].bias))


def test_nested_outputs_keep_their_types():
    Pair = namedtuple("Pair", "a b")

    class Bag(OrderedDict):
        note = "kept"

    class Layer(nn.Module):
        def forward(self, x):
            h = x * 2
            bag = Bag(pair=Pair(h, [h, x[:2]]), count=3, text="s", labels=torch.arange(len(x)))
            return h, bag, None

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Layer()

        def forward(self, x):
            self.out = self.layer(x)
            return self.out[0]

    model, x = Model(), torch.randn(5, 3)
    mixup = m.ManifoldMixup(model, ["layer"])
    model(x)
    h, bag, none = model.out
    assert torch.equal(h, mixup.mix.mix(x * 2)) and none is None
    assert type(bag) is Bag and type(bag["pair"]) is Pair and type(bag["pair"].b) is list
    assert bag["pair"].a is h and bag["pair"].b[0] is h  # one tensor, mixed once
    assert torch.equal(bag["pair"].b[1], x[:2]) and (bag["count"], bag["text"]) == (3, "s")
    assert torch.equal(bag["labels"], torch.arange(5))


def test_input_mixup_reaches_keyword_and_nested_arguments():
    class Model(nn.Module):
        def forward(self, batch, *, extra):
            return batch["image"] + extra

    model = Model()
    mixup = m.ManifoldMixup(model, [""])
    image, extra = torch.randn(4, 2), torch.randn(4, 2)
    out = model({"image": image}, extra=extra)
    torch.testing.assert_close(out, mixup.mix.mix(image) + mixup.mix.mix(extra))
    assert torch.equal(model.eval()({"image": image}, extra=extra), image + extra)


def test_a_sequence_first_batch_takes_dim_1():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    mixup = m.ManifoldMixup(model, ["0"], dim=1)
    x = torch.randn(9, 5, 4)
    out = model(x)
    assert mixup.mix.perm.shape == (5,)
    h = F.linear(x, model[0].weight, model[0].bias)
    assert torch.equal(out, model[1](mixup.mix.mix(h, dim=1)))
