"""A copy of a hooked model, or of a ManifoldMixup, mixes nothing."""

import copy
import io
import pickle

import pytest
import torch

import mmix_fast as m
from benchmarks.models import MLP
from tests.manifold.models import X, Y, is_loss_of, make


@pytest.mark.parametrize("copier", ["deepcopy", "pickle", "torch.save"])
def test_a_copied_model_mixes_nothing(copier):
    model, x, _ = make(MLP)
    mixup = m.ManifoldMixup(model, MLP.layers, generator=torch.Generator())
    model(x)
    if copier == "deepcopy":
        twin = copy.deepcopy(model)
    elif copier == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    draw = mixup.mix
    plain = twin(x)
    assert mixup.mix is draw and twin.training
    mixup.close()
    assert torch.equal(model(x), plain)
    again = m.ManifoldMixup(twin, ["0"])
    assert not torch.equal(twin(x), plain) and again.layer == "0"


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "shallow"])
def test_a_copied_manifoldmixup_is_closed(how, compiled):
    model = MLP()
    model.mixup = m.ManifoldMixup(model, ["1"], generator=None if compiled else torch.Generator())
    if compiled:
        torch._dynamo.reset()
        model.compile(backend="eager")
    model.mixup.loss(model(X), Y)
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        twin = copy.deepcopy(model)
        twin.mixup = copy.copy(model.mixup)
    z = twin(X)
    assert is_loss_of(twin.mixup, z, None)
    assert twin.mixup.mix is None and twin.mixup.layer is None
    assert twin.mixup.layers == ("1",) and "alpha=2.0" in repr(twin.mixup)
    assert not twin[1]._forward_hooks  # the first call of the copy removed its hooks
    assert not twin._forward_pre_hooks and not twin._forward_hooks
    twin.mixup.close()
    assert is_loss_of(model.mixup, model(X), model.mixup.mix)  # the original still mixes
    twin.mixup = m.ManifoldMixup(twin, ["0"])
    assert is_loss_of(twin.mixup, twin(X), twin.mixup.mix)
