"""mean_scales: the factors of a mean, against sums written out."""

import pytest
import torch

from mmix_fast.mean_scales import counted, mean_scales

C = 5
OWN = torch.tensor([0, 4, -100, 2, 9])  # 9 is out of range, so it has no weight
OTHER = torch.tensor([1, -100, -100, 3, 0])
NAN = float("nan")


def by_hand(lam, weight):
    """(1/sum for own terms, for others', for the z-loss), with λ rounded as float32."""
    lam = lam.expand(len(OWN))
    own, other, joint, count = 0.0, 0.0, 0.0, 0.0
    for a, b, own_lam in zip(OWN.tolist(), OTHER.tolist(), lam, strict=True):
        pair = (a, own_lam.item()), (b, (1 - own_lam).item())
        for k, (label, coefficient) in enumerate(pair):
            if not 0 <= label < C:
                continue
            w = 1.0 if weight is None else weight[label].item()
            own, other = (own + w, other) if k == 0 else (own, other + w)
            if coefficient:
                joint, count = joint + coefficient * w, count + coefficient
    return own, other, joint, count


@pytest.mark.parametrize("weight", [None, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])])
@pytest.mark.parametrize("lam", [0.0, 0.1, 1.0, [0.1, 0.9, 0.0, 1.0, 1.5]], ids=str)
def test_labels(weight, lam):
    lam = torch.tensor(lam)
    own, other, joint, count = by_hand(lam, weight)
    got = mean_scales(OWN, OTHER, lam, weight, -100, C)
    terms = (joint, joint) if lam.ndim else (own, other)
    want = torch.tensor([1 / terms[0], 1 / terms[1], 1 / count, 0.0], dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=0)


def test_a_weight_of_inf_at_a_coefficient_of_zero_is_absent():
    weight = torch.tensor([1.0, float("inf"), 1.0, float("inf"), 1.0])
    got = mean_scales(OWN, OTHER, torch.ones(5), weight, -100, C)
    assert got.tolist() == [1 / 3, 1 / 3, 1 / 3, 0]  # labels 0, 4 and 2


def test_means_over_nothing():
    none = torch.full((2,), -100)
    some = torch.tensor([1, 2])

    def undefined(own, other, lam):
        return mean_scales(own, other, torch.tensor(lam), None, -100, C)[3].isnan().item()

    assert undefined(none, none, 0.3) and undefined(none, none, [0.3, 0.5])
    assert undefined(none, some, 0.3) and undefined(some, none, 0.3)
    assert not undefined(none, some, 0.0) and not undefined(some, none, 1.0)
    assert not undefined(none, some, [0.3, 0.5])
    assert mean_scales(none, none, torch.tensor(0.3), None, -100, C)[2] == 0


def test_probabilities_and_label_maps():
    dense = torch.rand(3, C, 2, 4)
    assert mean_scales(dense, dense, torch.tensor(0.3), None, -100, C).tolist() == [1 / 24] * 3 + [
        0
    ]
    empty = mean_scales(dense[:0], dense[:0], torch.tensor(0.3), None, -100, C)
    assert empty[3].isnan()
    maps, lam = torch.randint(0, C, (3, 2, 4)), torch.tensor([0.2, 1.0, 0.5])
    torch.testing.assert_close(mean_scales(maps, maps, lam, None, -100, C)[0].item(), 1 / 24)
    assert counted(maps, torch.full_like(maps, -100), lam, -100)[0, 0, 0] == lam[0]
