"""torch.compile: gradients, the number of graphs, and errors during tracing."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import mmix_fast as m
from benchmarks.models import MLP, Encoder, PreActResNet18
from tests.manifold.models import Tree, make

HOWS = ("torch.compile", "model.compile", "step")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_step(model, mixup, how, backend):
    """(step(x, y) -> loss, the counter of graphs)."""
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
    seen, graphs = set(), [0]
    for _ in range(rounds):
        twin.load_state_dict(model.state_dict())  # running statistics of batch norm
        model.zero_grad(), twin.zero_grad()
        loss = step(x, y)
        loss.backward()
        graphs.append(counter.frame_count)
        known = mixup.layer in seen if how != "step" else bool(seen)
        assert graphs[-1] == graphs[-2] or not known, graphs
        seen.add(mixup.layer)
        mix = mixup.mix or m.Mix.identity(len(y))
        want = mix.cross_entropy(twin.by_hand(x, mixup.layer, mix), y)
        want.backward()
        torch.testing.assert_close(loss, want)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))
    assert len(seen) > 1  # several layers, or also None if prob < 1
    assert graphs[-1] <= len(kind.layers) + 1, graphs
    model.eval()
    with torch.no_grad():
        plain = torch.nn.functional.cross_entropy(twin.eval()(x), y)
        twin.load_state_dict(model.state_dict())
        torch.testing.assert_close(step(x, y), torch.nn.functional.cross_entropy(twin(x), y))
    assert mixup.layer is None and plain.isfinite()


@pytest.mark.parametrize("how", HOWS)
def test_gradients_and_number_of_graphs(how):
    check(MLP, how, "aot_eager", 8, prob=0.7)


@pytest.mark.deep
@pytest.mark.parametrize("how", HOWS)
def test_gradients_and_number_of_graphs_of_an_encoder(how):
    check(Encoder, how, "aot_eager", 8, prob=0.7)


def test_a_step_with_inductor():
    check(MLP, "step", "inductor", 8)


@pytest.mark.deep
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("options", [{"per_sample": True}, {"inplace": True, "pairing": "roll"}])
def test_larger_models_with_inductor(how, options):
    # Without AVX-512 (seen with AVX2), inductor of torch 2.13.0 gives a wrong gradient for the
    # strided 1x1 convolution of PreActResNet, even if plain PyTorch does the mixing.
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    for kind, rounds in ((PreActResNet18, 5), (Encoder, 8), (MLP, 8)):
        backend = "inductor" if wide or kind is not PreActResNet18 else "aot_eager"
        check(kind, how, backend, rounds, **options)
        torch._dynamo.reset()


@pytest.mark.parametrize(
    "how", ["step", *(pytest.param(h, marks=pytest.mark.deep) for h in HOWS[:2])]
)
def test_a_compiled_model_with_checkpoints(how):
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
def test_no_recompilation_for_batch_size_alpha_or_prob(how):
    model = MLP()
    mixup = m.ManifoldMixup(model, MLP.layers)
    step, counter = compiled_step(model, mixup, how, "aot_eager")
    for k, batch in enumerate((6, 5, 9, 6, 12, 7, 8, 11, 4)):
        mixup.alpha, mixup.prob = (2.0, 0.5, 1, 0, 0.7)[k % 5], (1.0, 0.9, 0.8, 0.75)[k % 4]
        step(torch.randn(batch, 16), torch.randint(0, 5, (batch,))).backward()
        assert mixup.mix is None or mixup.mix.perm.shape == (batch,)
        assert mixup.alpha != 0 or mixup.mix is None or mixup.mix.lam == 1
    assert counter.frame_count <= len(MLP.layers) + 1


def test_a_compiled_part_of_an_eager_root():
    """As in DistributedDataParallel: the layer is drawn outside the graphs, one for each."""

    class Root(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.module = inner

        def forward(self, x):
            return self.module(x)

    model, counter = MLP(), CompileCounterWithBackend("aot_eager")
    root = Root(torch.compile(model, fullgraph=True, backend=counter))
    mixup = m.ManifoldMixup(root, MLP.layers)
    y, seen = torch.tensor([0, 1, 2, 3]), set()
    for k in range(24):
        z = root(x := torch.randn(4 + k % 3, 16))
        seen.add(mixup.layer)
        torch.testing.assert_close(z, model.by_hand(x, mixup.layer, mixup.mix))
        mixup.loss(z, y.repeat(2)[: len(x)]).backward()
    assert seen == set(MLP.layers) and counter.frame_count <= len(MLP.layers) + 2


@pytest.mark.parametrize("how", [*HOWS[:2], "function"])
@pytest.mark.parametrize("fullgraph", [True, False])
def test_the_loss_takes_the_draw_of_its_compiled_forward_or_raises(how, fullgraph):
    """It raises for an earlier forward of a graph that holds the call of the model."""
    model, x, y = make(MLP)
    mixup = m.ManifoldMixup(model, MLP.layers)
    options = {"backend": "aot_eager", "fullgraph": fullgraph}
    if how == "model.compile":
        model.compile(**options)
        call = model
    else:
        call = torch.compile(model if how == "torch.compile" else lambda x: model(x), **options)
    with pytest.raises(RuntimeError, match="need a forward of the model first"):
        mixup.loss(model.forward(x), y)
    a, first = call(x), mixup.mix
    b, draw = call(x), mixup.mix
    for _ in range(2):
        torch.testing.assert_close(mixup.loss(b * 1, y), draw.cross_entropy(b, y))
    if how == "function":
        with pytest.raises(RuntimeError, match="a later compiled forward ran before loss"):
            mixup.loss(a, y)
    else:
        torch.testing.assert_close(mixup.loss(a, y), first.cross_entropy(a, y))
    c, other = call(x), mixup.mix  # the loss of b has run, so its draw stays known
    torch.testing.assert_close(mixup.loss(b, y), draw.cross_entropy(b, y))
    torch.testing.assert_close(mixup.loss(c, y), other.cross_entropy(c, y))
    with torch.no_grad():
        d = call(x)
        torch.testing.assert_close(mixup.loss(d, y), mixup.mix.cross_entropy(d, y))


@pytest.mark.parametrize("order", ["at once", "later", "copies"])
def test_two_forwards_in_one_compiled_step(order):
    model, _, y = make(MLP)
    mixup = m.ManifoldMixup(model, MLP.layers, pairing="flip")

    def step(x1, x2):
        a, first = model(x1), mixup._mixing.last.mix.lam
        if order == "at once":
            loss = mixup.loss(a, y)
        b, second = model(x2), mixup._mixing.last.mix.lam
        if order == "copies":
            return mixup.loss(a * 1, y), mixup.loss(b, y), first, second, a, b
        if order == "later":
            loss = mixup.loss(a, y)
        return loss, mixup.loss(b, y), first, second, a, b

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    x1, x2 = torch.randn(2, 6, 16)
    if order == "copies":
        with pytest.raises(Exception, match="Observed exception") as error:
            compiled(x1, x2)
        assert "the very output of the model where a graph holds" in str(error.value)
        return
    perm = torch.arange(6).flip(0)
    for _ in range(6):
        first, second, lam1, lam2, a, b = compiled(x1, x2)
        for loss, lam, z in ((first, lam1, a), (second, lam2, b)):
            torch.testing.assert_close(loss, m.mixed_cross_entropy(z, y, perm, lam))


def test_a_loss_compiled_by_itself():
    model, x, y = make(MLP)
    mixup = m.ManifoldMixup(model, ["1"])
    torch._dynamo.reset()
    loss = torch.compile(lambda z: mixup.loss(z, y) * 2, backend="aot_eager")
    z, draw = model(x), mixup.mix
    model(x)
    torch.testing.assert_close(loss(z), 2 * draw.cross_entropy(z, y))
    broken = torch.compile(lambda z: mixup.loss(z, y), backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="finds the forward by the logits' autograd graph"):
        broken(z)


@pytest.mark.parametrize("how", HOWS[:2])
@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("marked", [True, False])
def test_an_unmixed_model_of_the_same_class_was_compiled_before(how, fullgraph, marked):
    """Dynamo reuses a graph without checking hooks: mixed, or an error that says what to do."""

    def compiled(model):
        if how == "torch.compile":
            return torch.compile(model, backend="aot_eager", fullgraph=fullgraph)
        model.compile(backend="aot_eager", fullgraph=fullgraph)
        return model

    x, y = torch.randn(6, 16), torch.randint(0, 5, (6,))
    if marked:  # otherwise torch 2.13 sees that the batch dimension was not
        torch._dynamo.maybe_mark_dynamic(x, 0)
    compiled(MLP())(x).sum().backward()
    model = MLP()
    mixup = m.ManifoldMixup(model, ["1", "3"])
    call = compiled(model)
    error = pytest.raises(Exception, match=r"same class.*torch\.compiler\.reset\(\)")
    with error if marked or torch.__version__ < "2.13" else contextlib.nullcontext():
        for _ in range(6):
            z = call(x)
            torch.testing.assert_close(z, model.by_hand(x, mixup.layer, mixup.mix))
            mixup.loss(z, y).backward()
    torch.compiler.reset()
    z = call(x)
    torch.testing.assert_close(z, model.by_hand(x, mixup.layer, mixup.mix))
    other = MLP()  # a model without hooks, compiled later, is not mixed
    torch.testing.assert_close(compiled(other)(x), other.forward(x))
    torch.testing.assert_close(mixup.loss(z, y), mixup.mix.cross_entropy(z, y))


def test_the_same_seed_gives_the_same_draws():
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
    ("layers", "message"),
    [
        (["stem", "layer2"], "'layer2' ran twice in one forward"),
        (["stem", "unused"], "'unused' did not run"),
        (["stem", "table"], "'table' must give a floating tensor with the batch"),
    ],
)
def test_errors_during_tracing(how, layers, message):
    model = Tree()
    mixup = m.ManifoldMixup(model, layers)
    step, _ = compiled_step(model, mixup, how, "eager")
    with pytest.raises((RuntimeError, ValueError), match=message):
        for _ in range(1 if how == "step" else 40):  # until the layer is drawn
            step(torch.randn(3, 4), torch.tensor([0, 1, 2]))


def test_a_generator_in_a_compiled_step_raises():
    model = Tree()
    mixup = m.ManifoldMixup(model, ["stem"], generator=torch.Generator())
    step, _ = compiled_step(model, mixup, "step", "eager")
    with pytest.raises(RuntimeError, match="generator= cannot be used in a compiled graph"):
        step(torch.randn(3, 4), torch.tensor([0, 1, 2]))
