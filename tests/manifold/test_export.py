"""torch.export, torch.jit, make_fx, fake tensors, vmap: unmixed in eval(), else a clear error."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import mmix_fast as m
from benchmarks.models import MLP
from tests.manifold.models import X, Y


def chain():
    return nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 5))


EXPORTS = {
    "export": lambda net: torch.export.export(net, (X,)).module(),
    "strict export": lambda net: torch.export.export(net, (X,), strict=True).module(),
    "jit.trace": lambda net: torch.jit.trace(net, X),
    "make_fx": lambda net: make_fx(net)(X),
}


@pytest.mark.parametrize("how", EXPORTS)
@pytest.mark.parametrize("layers", [["0"], ["", "0"]])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_exports_are_unmixed_in_eval_and_refused_in_training(how, layers):
    net = chain()
    mixup = m.ManifoldMixup(net, layers)
    net(X)
    with pytest.raises(Exception, match=r"cannot be exported or traced in training: call eval\(\)"):
        EXPORTS[how](net)
    net.eval()
    exported = EXPORTS[how](net)
    assert torch.equal(exported(X), net(X))
    net.train()
    mixup.enabled = False
    torch.testing.assert_close(EXPORTS[how](net)(X), net(X))
    mixup.enabled = True
    assert mixup.loss(net(X), Y).isfinite() and mixup.layer in layers  # training still mixes


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script_says_to_close():
    net = chain().eval()
    mixup = m.ManifoldMixup(net, ["0"])
    with pytest.raises(RuntimeError, match=r"torch.jit.script cannot compile.*call its close\(\)"):
        torch.jit.script(net)
    twin = copy.deepcopy(net)
    with pytest.raises(RuntimeError, match="call the copy once"):
        torch.jit.script(twin)
    twin(X)
    assert torch.equal(torch.jit.script(twin)(X), net(X))
    mixup.close()
    assert torch.equal(torch.jit.script(net)(X), net(X))


def test_a_step_with_fake_tensors():
    for prob in (0.5, 1.0):
        with FakeTensorMode():
            model = MLP()
            mixup = m.ManifoldMixup(model, MLP.layers, prob=prob)
            for _ in range(4):
                z = model(torch.randn(6, 16))
                assert mixup.layer in (*MLP.layers, None)
                loss = mixup.loss(z, torch.zeros(6, dtype=torch.long))
                loss.backward()
                assert mixup.accuracy(z, torch.zeros(6, dtype=torch.long)).shape == ()
            assert model[0].weight.grad.shape == (16, 16) and loss.shape == ()


def test_vmap_says_what_to_do():
    model = MLP()
    mixup = m.ManifoldMixup(model, ["0"])

    def loss(parameters, x, y):
        return mixup.loss(torch.func.functional_call(model, parameters, (x[None],)), y[None])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    with pytest.raises(RuntimeError, match=r"torch\.func\.vmap.*enabled = False"):
        each(dict(model.named_parameters()), X, Y)
    mixup.enabled = False
    assert each(dict(model.named_parameters()), X, Y)["0.weight"].shape == (6, 16, 16)
