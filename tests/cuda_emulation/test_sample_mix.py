"""The kernel of sample_mix: its bits, the pairings and λ that it draws, and the calls around it."""

import itertools
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import mmix_fast as m
from mmix_fast import dispatch
from mmix_fast.manifold.mixup import ManifoldMixup
from mmix_fast.sampling import draw_mix
from tests.cuda_emulation import emulation, sampling_checks
from tests.cuda_emulation.sampling_checks import MOST_RANKED, OPS, PAIRINGS, SIZES, draw
from tests.support.cases import check_pairing


@pytest.fixture(scope="module")
def emulator():
    return emulation.load()


@pytest.fixture
def emulated(emulator, monkeypatch):
    """sample_mix draws by the kernel."""
    monkeypatch.setattr(dispatch, "BACKENDS", (*dispatch.BACKENDS, emulation.BACKEND))
    with m.use_backend(emulation.BACKEND.name):
        emulator.launches()
        yield emulator


def keys(count):
    return torch.randint(2**31 - 1, (count, 2)).tolist()


# Known answers of Random123, the authors' library: key, counter, bits.
ANSWERS = [
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 2, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("key, counter, bits", ANSWERS)
def test_philox_gives_the_published_bits(emulator, key, counter, bits):
    assert tuple(emulator.philox(key, counter)) == bits
    assert tuple(int(v) for v in sampling_checks.philox(key, *counter)) == bits


@pytest.mark.parametrize("seed", range(3))
def test_pairings_are_those_of_the_key(emulator, seed):
    emulator.set_seed(seed)
    assert sampling_checks.run_all(emulator, torch.float32)


@pytest.mark.parametrize("size", [*SIZES, 3, 100_003])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_every_pairing_is_a_permutation(emulator, pairing, size):
    (key,) = keys(1)
    perm, lam = draw(key, size, pairing)
    check_pairing(m.Mix(perm, lam), pairing, size)
    if pairing == "derangement" and size:
        at = steps = 0
        links = perm.tolist()
        while steps == 0 or at != 0:
            at, steps = links[at], steps + 1
        assert steps == size  # one cycle


def deviation(draws, kinds):
    """How far counts of equally likely kinds are from even: chi-squared, in its deviations."""
    _, counts = torch.tensor(draws).unique(dim=0, return_counts=True)
    assert len(counts) == kinds
    even, degrees = len(draws) / kinds, kinds - 1
    chi = ((counts - even) ** 2 / even).sum().item()
    return (chi - degrees) / math.sqrt(2 * degrees)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_small_pairings_are_equally_likely(emulator, size):
    kinds = math.factorial(size)
    drawn = [draw(key, size)[0].tolist() for key in keys(40 * kinds)]
    assert deviation(drawn, kinds) < 5
    cycles = math.factorial(size - 1)
    drawn = [draw(key, size, "derangement")[0].tolist() for key in keys(40 * cycles)]
    assert cycles == 1 or deviation(drawn, cycles) < 5


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_small_shuffles_are_equally_likely(emulator, size):
    """As the kernel shuffles a large batch; at a small size, a fault shows."""
    kinds = math.factorial(size)
    both = [torch.tensor(emulator.shuffle(key, size)) for key in keys(40 * kinds)]
    assert all(torch.equal(b[b[:, 0], 1], torch.arange(size)) for b in both)  # the inverse
    assert deviation([b[:, 0].tolist() for b in both], kinds) < 5


def test_large_pairings_are_even(emulator):
    """Where rows go, and how far apart two neighbours go."""
    size = MOST_RANKED + 904
    perms = torch.stack([draw(key, size)[0] for key in keys(40)])
    parts, places = torch.arange(size) * 10 // size, perms * 10 // size
    assert deviation((parts * 10 + places).flatten().tolist(), 100) < 4
    apart = (perms[:, 1::2] - perms[:, ::2]) % size * 100 // size
    assert deviation(apart.flatten().tolist(), 100) < 4


def beta_cdf(alpha):
    """A function of a tensor of λ, for Beta(alpha, alpha): the density's integral over logit λ."""
    end = math.asinh(50 / alpha + 50)
    at = torch.linspace(-end, end, 400_001, dtype=torch.float64)
    logit = at.sinh()
    log_density = alpha * (
        torch.nn.functional.logsigmoid(logit) + torch.nn.functional.logsigmoid(-logit)
    )
    mass = ((log_density - log_density.max()).exp() * at.cosh()).cumsum(0)

    def cdf(lam):
        where = torch.logit(lam.double()).asinh()
        index = ((where + end) / (2 * end) * (len(at) - 1)).round().long()
        return mass[index.clamp(0, len(at) - 1)] / mass[-1]

    return cdf


@pytest.mark.parametrize("alpha", [1e-3, 0.05, 0.2, 1.0, 2.0, 30.0, 1e3, 3e4])
def test_lam_is_beta(emulator, alpha):
    """A Kolmogorov-Smirnov test, of so many that a gamma sampler without rejection fails."""
    n = 400_000
    lam = draw(keys(1)[0], n, "flip", True, alpha)[1].sort().values
    assert lam.dtype == torch.float32 and ((lam >= 0) & (lam <= 1)).all()
    below = (torch.arange(n) + 0.5) / n
    inside = (lam > 1e-30) & (lam < 1 - 1e-6)  # float32 has few numbers near 1
    distance = (beta_cdf(alpha)(lam[inside]) - below[inside]).abs()
    assert inside.sum() > 100 and distance.max() < 1.95 / n**0.5  # exceeded in 0.1 % of the draws
    assert ((lam > 0.5).double().mean() - 0.5).abs() < 2 / n**0.5


def test_lam_does_not_depend_on_its_neighbours(emulator):
    lam = draw(keys(1)[0], 40_001, "flip", True, 1.0)[1].double() - 0.5
    for apart in (1, 32, 256):
        assert (12 * lam[apart:] * lam[:-apart]).mean().abs() < 4 / 40_000**0.5
    one = torch.stack([draw(key, 3, alpha=1.0)[1] for key in keys(4000)]).sort().values
    assert (one - (torch.arange(4000) + 0.5) / 4000).abs().max() < 1.95 / 4000**0.5


def test_alphas_that_no_one_should_use(emulator):
    (key,) = keys(1)
    assert torch.equal(draw(key, 5, per_sample=True, alpha=0.0)[1], torch.ones(5))
    for alpha in (5e-324, 1e-300, 1e-40):
        lam = draw(key, 2000, "flip", True, alpha)[1]
        assert ((lam == 0) | (lam == 1)).double().mean() > 0.99 and not lam.isnan().any()
    for alpha in (1e12, 1e30, 1e300):
        torch.testing.assert_close(draw(key, 9, "flip", True, alpha)[1], torch.full((9,), 0.5))
    assert draw(key, 5, alpha=float("nan"))[1].isnan()  # and the kernel ends


def test_the_key_alone_decides(emulator):
    first, second = ((11, 12), (13, 12))
    for pairing, size in itertools.product(("random", "derangement"), (50, MOST_RANKED + 1)):
        one, again, other = (draw(key, size, pairing, True) for key in (first, first, second))
        assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
        assert not torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
    alpha = torch.tensor(0.4, dtype=torch.float64)
    given = OPS.sample_mix(torch.tensor(first), 50, True, "random", 0.0, alpha)
    assert torch.equal(given[1], draw(first, 50, "random", True, 0.4)[1])


def test_a_draw_is_one_launch(emulated):
    for pairing, size, per_sample in itertools.product(PAIRINGS, SIZES, (False, True)):
        mix = m.sample_mix(size, 0.4, pairing=pairing, per_sample=per_sample)
        assert mix.perm.shape == (size,) and mix.lam.shape == ((size,) if per_sample else ())
        nothing = size == 0 and per_sample
        assert emulated.launches() == ([] if nothing else ["mmix::sample_mix(mmix::SampleArgs)"])


def test_other_backends_draw_by_pytorch(emulated):
    for name in ("reference", "triton", "cuda"):  # whether or not they are usable here
        with m.use_backend(name):
            m.sample_mix(4, 0.4)
    torch.func.vmap(lambda x: x + m.sample_mix(4, 0.4).lam, randomness="same")(torch.zeros(3))
    assert emulated.launches() == []


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_for_any_alpha_and_batch_size(emulated, backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)

    @torch.compile(fullgraph=True, backend=counter)
    def drawn(x, alpha):
        mix, other = m.sample_mix(len(x), alpha), m.sample_mix(len(x), alpha, per_sample=True)
        return x + 1, mix, other

    lams = set()
    for size, alpha in ((8, 0.1), (5, 0.7), (9, 2.0), (MOST_RANKED + 9, 0.4), (7, 0.0), (7, 0.5)):
        _, mix, other = drawn(torch.zeros(size, 2), alpha)
        check_pairing(mix, "random", size)
        assert other.lam.shape == (size,) and not torch.equal(mix.perm, other.perm)
        if alpha == 0:
            assert mix.lam == 1 and (other.lam == 1).all()
        lams.add(mix.lam.item())
    assert len(lams) == 6 and counter.frame_count <= 2
    assert emulated.launches() == ["mmix::sample_mix(mmix::SampleArgs)"] * 12
    torch._dynamo.reset()


def test_a_compiled_step_of_manifold_mixup(emulated):
    torch._dynamo.reset()
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
    mixup = ManifoldMixup(model, ["0", "1"], alpha=1.0)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x, y):
        return mixup.loss(model(x), y)

    for size in (6, 7, 8):
        step(torch.randn(size, 4), torch.randint(3, (size,))).backward()
        assert emulated.launches().count("mmix::sample_mix(mmix::SampleArgs)") == 1
        check_pairing(mixup.mix, "random", size)
    mixup.close()
    torch._dynamo.reset()


def test_tracers(emulated):
    with FakeTensorMode():
        mix = m.sample_mix(6, 0.4, per_sample=True)
        assert mix.perm.shape == mix.lam.shape == (6,) and mix.lam.dtype == torch.float32
    graph = make_fx(lambda x: x + m.sample_mix(len(x), 0.4, per_sample=True).lam)(torch.zeros(6))
    assert ((graph(torch.zeros(6)) >= 0) & (graph(torch.zeros(6)) <= 1)).all()

    class Drawn(torch.nn.Module):
        def forward(self, x):
            return x + 0, draw_mix(len(x), 0.4, x.device, False, "derangement").perm

    exported = torch.export.export(Drawn(), (torch.zeros(5),)).module()
    check_pairing(m.Mix(exported(torch.zeros(5))[1], torch.ones(())), "derangement", 5)


@pytest.mark.parametrize("per_sample", [False, True])
def test_opcheck(emulator, per_sample):
    for alpha in (None, torch.tensor(0.4, dtype=torch.float64)):
        args = (torch.tensor([1, 2]), 6, per_sample, "random", 0.4, alpha)
        torch.library.opcheck(OPS.sample_mix.default, args)
