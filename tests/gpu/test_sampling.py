"""sample_mix and the methods of Mix, with draws on the GPU."""

import pytest
import torch

import mmix_fast as m
from tests.support import gpu
from tests.support.cases import check_pairing

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("pairing", ["random", "flip", "roll", "derangement"])
@pytest.mark.parametrize("size", [0, 1, 2, 8, 101, 5000])
def test_every_pairing_is_a_permutation(pairing, size):
    for per_sample in (False, True):
        mix = m.sample_mix(size, 0.4, pairing=pairing, per_sample=per_sample)
        assert mix.perm.device.type == mix.lam.device.type == gpu.DEVICE
        assert mix.lam.dtype == torch.float32 and mix.lam.shape == ((size,) if per_sample else ())
        assert ((mix.lam >= 0) & (mix.lam <= 1)).all()
        check_pairing(mix, pairing, size)


@pytest.mark.parametrize("size", [0, 64, 5000])
@pytest.mark.parametrize("pairing", ["random", "flip", "roll", "derangement"])
def test_a_draw_is_two_launches(on_gpu, pairing, size):
    if on_gpu != "cuda":
        pytest.skip("plain PyTorch draws")
    for per_sample in (False, True):

        def draw(per_sample=per_sample):
            return m.sample_mix(size, 0.4, pairing=pairing, per_sample=per_sample)

        draw()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            draw()
            torch.cuda.synchronize()
        on_device = torch.autograd.DeviceType.CUDA
        assert 1 <= sum(e.device_type == on_device for e in profiler.events()) <= 2


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 1.0, 2.0, 1e3])
def test_beta_moments(alpha):
    n = 40_000
    lam = m.sample_mix(n, alpha, per_sample=True).lam.double()
    deviation = (4 * (2 * alpha + 1)) ** -0.5
    assert abs(lam.mean().item() - 0.5) < 5 * deviation / n**0.5
    assert abs(lam.std().item() / deviation - 1) < 0.03


def test_permutations_are_uniform():
    """Each row's partner: a chi-squared test with 15 degrees of freedom for each of 16 rows."""
    n, draws = 16, 2000
    partners = torch.stack([m.sample_mix(n, 1.0).perm for _ in range(draws)])
    counts = torch.nn.functional.one_hot(partners, n).sum(0).double()
    chi = ((counts - draws / n) ** 2 / (draws / n)).sum(1)
    assert (chi < 50).all()  # exceeded with a probability of 1e-5


def test_seeds_and_generators():
    torch.manual_seed(3)
    first = m.sample_mix(64, 0.4)
    second = m.sample_mix(64, 0.4)
    torch.manual_seed(3)
    again = m.sample_mix(64, 0.4)
    assert torch.equal(first.perm, again.perm) and torch.equal(first.lam, again.lam)
    assert not torch.equal(first.perm, second.perm)
    for where in ("cpu", gpu.DEVICE):
        draws = []
        for _ in range(2):
            generator = torch.Generator(where).manual_seed(5)
            draws.append(m.sample_mix(64, 0.4, device=gpu.DEVICE, generator=generator))
        assert torch.equal(draws[0].perm, draws[1].perm)
        assert torch.equal(draws[0].lam, draws[1].lam)
        assert draws[0].perm.device.type == gpu.DEVICE


def test_methods():
    mix = m.sample_mix(16, 0.4, per_sample=True)
    x, y, z = torch.randn(16, 8), torch.randint(0, 5, (16,)), torch.randn(16, 5)
    want = m.mix(x, mix.perm, mix.lam)
    assert torch.equal(mix.mix(x), want) and torch.equal(mix.mix_(x.clone()), want)
    soft = mix.targets(y, num_classes=5)
    torch.testing.assert_close(soft.sum(1), torch.ones(16))
    rows = -(soft * z.log_softmax(1)).sum(1)
    torch.testing.assert_close(mix.cross_entropy(z, y), rows.mean())
    hits = z.argmax(1)
    share = mix.lam * (hits == y) + (1 - mix.lam) * (hits == y[mix.perm])
    torch.testing.assert_close(mix.accuracy(z, y), share.mean())
    same = m.Mix.identity(16, gpu.DEVICE)
    assert torch.equal(same.mix(x), x)
