"""sample_mix: the draws of λ and perm. Mix: its methods."""

import dataclasses

import pytest
import torch

import mmix_fast as m
from tests.support.cases import check_pairing

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("alpha", [1e-3, 1e-2, 0.2, 1.0, 2.0, 1e3])
def test_beta_moments(alpha):
    n = 40000
    lam = m.sample_mix(n, alpha, per_sample=True).lam
    assert lam.dtype == torch.float32 and lam.shape == (n,)
    assert ((lam >= 0) & (lam <= 1)).all()  # NaN fails this too
    sd = (4 * (2 * alpha + 1)) ** -0.5
    assert abs(lam.double().mean().item() - 0.5) < 5 * sd / n**0.5
    assert abs(lam.double().std().item() / sd - 1) < 0.03


def test_tiny_alpha_gives_0_and_1_half_each():
    lam = m.sample_mix(20000, 1e-3, per_sample=True).lam
    ends = ((lam < 1e-3) | (lam > 1 - 1e-3)).double().mean()
    assert ends > 0.98 and abs((lam > 0.5).double().mean() - 0.5) < 0.02


def test_alpha_1_is_uniform():
    lam = m.sample_mix(40000, 1.0, per_sample=True).lam.sort().values
    steps = (torch.arange(40000) + 0.5) / 40000
    assert (lam - steps).abs().max() < 0.015  # a Kolmogorov-Smirnov test


def test_alpha_0_gives_lam_1():
    assert m.sample_mix(4, 0).lam == 1
    assert torch.equal(m.sample_mix(4, 0.0, per_sample=True).lam, torch.ones(4))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 8, 101])
@pytest.mark.parametrize("pairing", ["random", "flip", "roll", "derangement"])
def test_every_pairing_is_a_permutation(size, pairing):
    for _ in range(5):
        mix = m.sample_mix(size, 1.0, pairing=pairing)
        assert mix.perm.dtype == torch.int64 and mix.lam.shape == ()
        check_pairing(mix, pairing, size)


def test_derangements_vary():
    draws = {tuple(m.sample_mix(4, 1.0, pairing="derangement").perm.tolist()) for _ in range(200)}
    assert len(draws) >= 6


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_same_seed_gives_the_same_draws(per_sample):
    def draw(generator=None):
        mix = m.sample_mix(9, 0.5, per_sample=per_sample, generator=generator)
        return mix.perm.tolist(), mix.lam.tolist()

    torch.manual_seed(4)
    first, second = draw(), draw()
    torch.manual_seed(4)
    assert draw() == first != second
    generator = torch.Generator().manual_seed(7)
    before = torch.get_rng_state()
    one = draw(generator)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is not used
    assert draw(torch.Generator().manual_seed(7)) == one != draw(generator)


def test_generator_in_a_graph_is_an_error():
    generator = torch.Generator().manual_seed(1)

    def step(x):
        return m.sample_mix(4, 1.0, generator=generator).mix(x)

    with pytest.raises(Exception, match=r"(?i)generator"):
        torch.compile(step, fullgraph=True, backend="eager")(torch.randn(4, 3))
    torch._dynamo.reset()


def test_mix_is_a_frozen_dataclass_that_unpacks():
    mix = m.sample_mix(4, 1.0)
    perm, lam = mix
    assert perm is mix.perm and lam is mix.lam
    assert dataclasses.is_dataclass(mix)
    with pytest.raises(dataclasses.FrozenInstanceError):
        mix.lam = torch.ones(())
    perm, lam = m.Mix.identity(3, "cpu")
    assert perm.tolist() == [0, 1, 2] and lam == 1


@pytest.mark.parametrize("per_sample", [False, True])
def test_methods_of_mix_equal_the_functions(backend, per_sample):
    mix = m.sample_mix(6, 1.0, per_sample=per_sample)
    perm, lam = mix
    x, y, z = torch.randn(6, 5), torch.randint(0, 3, (6,)), torch.randn(6, 3)
    assert torch.equal(mix.mix(x), m.mix(x, perm, lam))
    assert torch.equal(mix.mix(x.t(), dim=1), m.mix(x, perm, lam).t())
    assert torch.equal(mix.mix_(x.clone()), m.mix(x, perm, lam))
    want = m.mix_targets(y, perm, lam, num_classes=3)
    assert torch.equal(mix.targets(y, num_classes=3), want)
    want = m.mixed_cross_entropy(z, y, perm, lam, label_smoothing=0.1)
    assert torch.equal(mix.cross_entropy(z, y, label_smoothing=0.1), want)
    right, partner = (z.argmax(1) == y).float(), (z.argmax(1) == y[perm]).float()
    got = mix.accuracy(z, y)
    assert got.shape == () and 0 <= got <= 1
    torch.testing.assert_close(got, (lam * right + (1 - lam) * partner).mean())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_lam_is_float32_for_any_default_dtype(dtype, compiled):
    def draws():
        mixes = [
            m.sample_mix(4, alpha, per_sample=p) for alpha in (0.0, 0.2) for p in (False, True)
        ]
        return [mix.lam for mix in (*mixes, m.Mix.identity(4))]

    torch._dynamo.reset()
    run = torch.compile(draws, fullgraph=True, backend="aot_eager") if compiled else draws
    torch.set_default_dtype(dtype)
    try:
        with torch.inference_mode():
            seen = draws()
        seen += run()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {lam.dtype for lam in seen} == {torch.float32}


@pytest.mark.parametrize("size", [-1, 2.0, True, None])
def test_identity_checks_its_size(size):
    with pytest.raises((TypeError, ValueError), match="batch_size must be"):
        m.Mix.identity(size)
