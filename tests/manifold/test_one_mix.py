"""A compiled model runs one mix a step, and has one graph a layer: the draw is outside of them."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint

import mmix_fast as m
from benchmarks.models import MLP

MIXES = ("mmix_fast::mix", "mmix_fast::mix_")
HOWS = ("torch.compile", "torch.compile of a compiled", "model.compile")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def own_forward():
    return MLP()


def torchs_forward():
    """Dynamo compiles no frame of nn.Sequential."""
    return nn.Sequential(*MLP())


def compiled(make, how, layers, fullgraph=True, backend="aot_eager", **options):
    """A compiled model, its ManifoldMixup, and the counter of its graphs."""
    model, counter = make(), CompileCounterWithBackend(backend)
    call = model
    if how == "model.compile":
        model.compile(fullgraph=fullgraph, backend=counter)
    elif how == "torch.compile of a compiled":  # the ManifoldMixup is given the compiled one
        call = torch.compile(model, fullgraph=fullgraph, backend=counter)
    mixup = m.ManifoldMixup(call, layers, **options)
    if how == "torch.compile":
        call = torch.compile(model, fullgraph=fullgraph, backend=counter)
    return call, mixup, counter


def mixes_in(work):
    with profile() as recorded:
        result = work()
    return sum(event.name in MIXES for event in recorded.events()), result


def draw_settings(mixup):
    """Sets alpha and prob anew, and gives a batch size, for each step."""
    steps = zip(
        itertools.cycle((6, 5, 9, 6, 12, 7, 8)),
        itertools.cycle((2.0, 0.5, 1, 0, 0.7)),
        itertools.cycle((1.0, 0.9, 0.8, 0.75)),
        strict=False,
    )
    for batch, mixup.alpha, mixup.prob in steps:
        yield batch


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("make", [own_forward, torchs_forward])
@pytest.mark.parametrize("fullgraph", [True, False])
def test_one_mix_forward_and_backward_and_one_graph_a_layer(make, how, fullgraph):
    if (make, how) == (torchs_forward, HOWS[1]):
        pytest.skip(
            "torch.compile has taken the forward of nn.Sequential already: drawn in a graph"
        )
    layers = ("", "0", "1", "3")
    call, mixup, counter = compiled(make, how, layers, fullgraph)
    model = getattr(call, "_orig_mod", call)
    seen, graphs = set(), 0
    for _, batch in zip(range(40), draw_settings(mixup), strict=False):
        x, y = torch.randn(batch, 16, requires_grad=True), torch.randint(0, 5, (batch,))
        forward, loss = mixes_in(lambda x=x, y=y: mixup.loss(call(x), y))
        backward, _ = mixes_in(loss.backward)
        if mixup.layer in seen:
            assert counter.frame_count == graphs  # compiled already, whatever batch, alpha and prob
            assert forward == backward == (mixup.layer is not None), mixup.layer
        seen.add(mixup.layer)
        graphs = counter.frame_count
        mix = mixup.mix or m.Mix.identity(batch)
        got, x.grad = [x.grad, *(p.grad for p in model.parameters())], None
        model.zero_grad()
        want = mix.cross_entropy(MLP.by_hand(model, x, mixup.layer, mix), y)
        want.backward()
        torch.testing.assert_close(loss, want)
        torch.testing.assert_close(got, [x.grad, *(p.grad for p in model.parameters())])
        model.zero_grad()
    assert seen == {*layers, None} and graphs == len(layers) + 1


@pytest.mark.parametrize("how", ["torch.compile", "model.compile"])
def test_one_mix_with_inductor(how):
    call, mixup, counter = compiled(own_forward, how, ["0", "3"], backend="inductor")
    for batch in (6, 5, 6, 9, 7, 8, 4, 6, 12, 5):
        x, y = torch.randn(batch, 16), torch.randint(0, 5, (batch,))
        graphs = counter.frame_count
        forward, loss = mixes_in(lambda x=x, y=y: mixup.loss(call(x), y))
        backward, _ = mixes_in(loss.backward)
        torch.testing.assert_close(
            loss, mixup.mix.cross_entropy(call.by_hand(x, mixup.layer, mixup.mix), y)
        )
        if counter.frame_count == graphs:
            assert (forward, backward) == (1, 1)
    assert counter.frame_count == 2


def test_the_draws_are_those_of_the_eager_model():
    """So generator= works, and torch.manual_seed gives the same layers, λ and pairings."""
    runs = []
    for how in ("eager", "model.compile", "torch.compile"):
        generator = torch.Generator().manual_seed(5)
        call, mixup, _ = compiled(own_forward, how, ["", "0", "1"], generator=generator, prob=0.8)
        draws = []
        for _ in range(8):
            call(torch.randn(6, 16))
            draws.append((mixup.layer, mixup.mix and (mixup.mix.perm.tolist(), mixup.mix.lam)))
        runs.append(draws)
    assert runs[0] == runs[1] == runs[2] and len({layer for layer, _ in runs[0]}) == 4


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_the_compiled_model_recomputes_its_mix(reentrant):
    call, mixup, _ = compiled(own_forward, "torch.compile", ["0", "3"])
    for batch in (6, 5, 6, 7, 6, 8):
        x, y = torch.randn(batch, 16, requires_grad=True), torch.randint(0, 5, (batch,))
        call.zero_grad()
        mixup.loss(checkpoint(call, x, use_reentrant=reentrant), y).backward()
        got = [p.grad for p in call.parameters()]
        loss = mixup.mix.cross_entropy(call.by_hand(x, mixup.layer, mixup.mix), y)
        torch.testing.assert_close(got, list(torch.autograd.grad(loss, list(call.parameters()))))


def test_more_layers_than_dynamo_compiles_by_default():
    layers = [str(k) for k in range(12)]

    def deep():
        return nn.Sequential(*(nn.Linear(16, 16) for _ in range(13)))

    call, mixup, counter = compiled(deep, "torch.compile", layers, backend="eager")
    x = torch.randn(6, 16)
    seen = set()
    while len(seen) < 12:
        call(x)
        seen.add(mixup.layer)
    assert counter.frame_count == 12


def test_two_models_of_one_class_never_use_the_graphs_of_each_other():
    """Dynamo tries the graphs of one for the other, also those that mix nothing."""
    x = torch.randn(6, 16)
    both = [compiled(own_forward, "model.compile", ["0", "3"], prob=0.5)[:2] for _ in range(2)]
    for _ in range(16):
        for model, mixup in both:
            for training in (True, False):
                z = model.train(training)(x)
                want = model.by_hand(x, mixup.layer, mixup.mix)
                torch.testing.assert_close(z, want)
            model.train()


def test_close_and_copies_leave_the_forward_of_torch():
    model = torchs_forward()
    with m.ManifoldMixup(model, ["0"]):
        twin = copy.deepcopy(model)
        assert "forward" in vars(model)
        assert torch.equal(twin(torch.ones(2, 16)), twin.forward(torch.ones(2, 16)))
    assert "forward" not in vars(model) and "forward" not in vars(twin)
