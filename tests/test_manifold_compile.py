"""ManifoldMixup under torch.compile: gradients, one graph and no more, errors when traced."""

import copy

import pytest
import torch
from models import MLP, Encoder, PreActResNet18
from test_manifold import make
from test_manifold_errors import Tree, X
from torch._dynamo.testing import CompileCounterWithBackend

import mmix_fast as m

HOWS = ("torch.compile", "model.compile", "step")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_step(model, mixup, how, backend):
    """step(x, y) -> loss, and the counter of graphs."""
    counter = CompileCounterWithBackend(backend)
    if how == "step":
        step = torch.compile(lambda x, y: mixup.loss(model(x), y), fullgraph=True, backend=counter)
        return step, counter
    if how == "torch.compile":
        call = torch.compile(model, fullgraph=True, backend=counter)
    else:
        model.compile(fullgraph=True, backend=counter)
        call = model
    return lambda x, y: mixup.loss(call(x), y), counter


def check(kind, how, backend, rounds, **options):
    model, x, y = make(kind)
    twin = copy.deepcopy(model)
    mixup = m.ManifoldMixup(model, kind.layers, **options)
    step, counter = compiled_step(model, mixup, how, backend)
    seen, graphs = set(), []
    for _ in range(rounds):
        twin.load_state_dict(model.state_dict())  # the statistics of batch norm
        model.zero_grad(), twin.zero_grad()
        loss = step(x, y)
        loss.backward()
        seen.add(mixup.layer)
        graphs.append(counter.frame_count)
        mix = mixup.mix or m.Mix.identity(len(y))
        want = mix.cross_entropy(twin.by_hand(x, mixup.layer, mix), y)
        want.backward()
        torch.testing.assert_close(loss, want)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))
    assert len(seen) > 1  # of the layers, and none where prob < 1
    assert graphs[-1] <= len(kind.layers) + 1 and len(set(graphs)) == 1, graphs
    model.eval()
    with torch.no_grad():
        plain = torch.nn.functional.cross_entropy(twin.eval()(x), y)
        twin.load_state_dict(model.state_dict())
        torch.testing.assert_close(step(x, y), torch.nn.functional.cross_entropy(twin(x), y))
    assert mixup.layer is None and plain.isfinite()


@pytest.mark.parametrize("how", HOWS)
def test_gradients_and_graphs(how):
    check(MLP, how, "aot_eager", 8, prob=0.7)


@pytest.mark.deep
@pytest.mark.parametrize("how", HOWS)
def test_gradients_and_graphs_of_an_encoder(how):
    check(Encoder, how, "aot_eager", 8, prob=0.7)


def test_inductor():
    check(MLP, "step", "inductor", 8)


@pytest.mark.deep
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("options", [{"per_sample": True}, {"inplace": True, "pairing": "roll"}])
def test_inductor_on_big_models(how, options):
    for kind, rounds in ((PreActResNet18, 5), (Encoder, 8), (MLP, 8)):
        check(kind, how, "inductor", rounds, **options)
        torch._dynamo.reset()


@pytest.mark.parametrize(
    "how", ["step", *(pytest.param(h, marks=pytest.mark.deep) for h in HOWS[:2])]
)
def test_inside_a_checkpoint(how):
    model = Encoder(checkpointing=False)
    x, y = torch.randint(0, 11, (6, 7)), torch.randint(0, 4, (6,))
    twin = Encoder()
    twin.load_state_dict(model.state_dict())
    mixup = m.ManifoldMixup(model, Encoder.layers)
    step, counter = compiled_step(model, mixup, how, "aot_eager")
    for _ in range(4):
        model.zero_grad(), twin.zero_grad()
        step(x, y).backward()
        mixup.mix.cross_entropy(twin.by_hand(x, mixup.layer, mixup.mix), y).backward()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= len(Encoder.layers) + 1


@pytest.mark.parametrize("how", HOWS)
def test_another_batch_size_and_a_retrace(how):
    model = MLP()
    mixup = m.ManifoldMixup(model, MLP.layers)
    step, _ = compiled_step(model, mixup, how, "aot_eager")
    for batch in (6, 5, 9, 6):
        step(torch.randn(batch, 16), torch.randint(0, 5, (batch,))).backward()
        assert mixup.mix.perm.shape == (batch,)


def test_same_seed_same_draws():
    model, x, y = make(MLP)
    mixup = m.ManifoldMixup(model, MLP.layers)
    step, _ = compiled_step(model, mixup, "step", "inductor")
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append([(step(x, y).item(), mixup.layer, mixup.mix.lam.item()) for _ in range(5)])
    assert runs[0] == runs[1] and len({r[2] for r in runs[0]}) == 5


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        (["stem", "layer2"], {}, "'layer2' ran twice in one forward"),
        (["stem", "unused"], {}, "'unused' did not run"),
        (["stem", "table"], {}, "'table' must give a floating tensor with the batch"),
        (["stem"], {"generator": torch.Generator()}, "generator"),
    ],
)
def test_errors_when_traced(how, layers, options, message):
    model = Tree()
    mixup = m.ManifoldMixup(model, layers, **options)
    step, _ = compiled_step(model, mixup, how, "eager")
    with pytest.raises((RuntimeError, ValueError), match=message):
        step(X, torch.tensor([0, 1, 2]))
