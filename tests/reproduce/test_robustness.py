"""The deformations and attacks of the paper, on networks whose answers are known."""

from math import atan, degrees, inf

import pytest
import torch
from torch import nn

import mmix_fast
from benchmarks import perturb
from benchmarks.paper import geometry
from benchmarks.reproduce import robustness
from benchmarks.reproduce.data import Split

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CPU = torch.device("cpu")


class Brightness(nn.Module):
    """Class 1 where the mean pixel is above a half, else 0."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(4.0))
        self.modes, self.least, self.most = set(), inf, -inf

    def forward(self, x):
        pixels = x * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)
        self.modes.add(self.training)
        self.least = min(self.least, pixels.min().item())
        self.most = max(self.most, pixels.max().item())
        score = self.slope * (pixels.mean((1, 2, 3)) - 0.5)
        return torch.stack([-score, score], 1)


def grey(*levels: int) -> Split:
    """Even images of these levels of 0..255, with the labels that Brightness gives them."""
    images = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    return Split(images, (torch.tensor(levels) > 127).long())


@pytest.fixture
def short(monkeypatch):
    """The longest attack with few steps."""
    attack = robustness.Attack(inf, 0.01, 5, most=3)
    monkeypatch.setitem(robustness.ATTACKS, "PGD unbounded, 200 steps", attack)


def evaluate(model, split, batch=4, seed=0):
    return robustness.evaluate(model, split, MEAN, STD, CPU, batch, seed)


def test_all_numbers_of_a_network_whose_answers_are_known(short):
    # 121 is 0.0255 below a half, so 0.03 crosses it; 115 is 0.049 below; the others are far away.
    found = evaluate(Brightness(), grey(121, 115, 60, 200, 150))
    assert found["clean"] == 100.0
    assert found["FGSM 0.03"] == 80.0
    assert found["PGD 0.03, 7 steps"] == 80.0
    # A border of 0 darkens: (200 / 255) / 1.2² = 0.545 stays above a half, / 1.4² = 0.40 does not,
    # nor does (150 / 255) / 1.2² = 0.41.
    assert found["zoom out 120 %"] == 80.0 and found["zoom out 140 %"] == 60.0
    assert found["zoom in 60 %"] == found["zoom in 80 %"] == 100.0
    assert list(found) == ["clean", *perturb.DEFORMATIONS, *robustness.ATTACKS]


def test_the_unbounded_attack_sees_a_part_of_the_images_and_goes_on_past_epsilon(short):
    found = evaluate(Brightness(), grey(*[115, 250] * 5))
    assert found["FGSM 0.03"] == found["PGD 0.03, 7 steps"] == 100.0
    # Half of all would be fooled; of three images, none, one, two or three are right.
    assert found["PGD unbounded, 200 steps"] in {0.0, 100 / 3, 200 / 3}


def test_attacks_are_as_their_names_say():
    fgsm, pgd, unbounded = robustness.ATTACKS.values()
    assert (fgsm.epsilon, fgsm.step, fgsm.steps, fgsm.most) == (0.03, 0.03, 1, None)
    assert (pgd.epsilon, pgd.step, pgd.steps, pgd.most) == (0.03, 0.01, 7, None)
    assert (unbounded.epsilon, unbounded.step, unbounded.steps) == (inf, 0.01, 200)


def test_a_part_is_drawn_from_all_images_with_their_labels():
    split = Split(torch.arange(100).view(-1, 1, 1, 1), torch.arange(100))
    part = robustness.part_of(split, 20, seed=1)
    assert torch.equal(part.images.flatten(), part.labels)
    assert len(part.labels.unique()) == 20 and part.labels.max() >= 20
    assert torch.equal(part.labels, robustness.part_of(split, 20, seed=1).labels)
    assert not torch.equal(part.labels, robustness.part_of(split, 20, seed=2).labels)
    assert (
        robustness.part_of(split, 100, 0) is split and robustness.part_of(split, None, 0) is split
    )


def test_pixels_stay_in_0_to_1_the_mode_returns_and_no_parameter_gets_a_gradient(short):
    model = Brightness().train()
    with torch.no_grad():  # an attack needs gradients even here
        found = evaluate(model, grey(0, 255, 121, 130))
    assert found["FGSM 0.03"] == 50.0
    assert model.least >= -1e-6 and model.most <= 1 + 1e-6
    assert model.modes == {False} and model.training
    assert model.slope.grad is None


def test_the_mode_returns_after_an_error(short):
    model = Brightness()
    with pytest.raises(RuntimeError, match="size"):
        evaluate(model, Split(torch.zeros(2, 5, 8, 8, dtype=torch.uint8), torch.zeros(2).long()))
    assert model.training
    assert not (evaluate(model.eval(), grey(9)) and model.training)


def test_the_batch_size_changes_nothing_and_the_seed_does(short, monkeypatch):
    monkeypatch.delitem(robustness.ATTACKS, "PGD unbounded, 200 steps")
    images = torch.randint(256, (60, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(5, 192, generator=torch.Generator().manual_seed(1)))
    labels = torch.arange(60) % 5
    split = Split(images.to(torch.uint8), labels)
    found = evaluate(model, split, batch=60)
    assert evaluate(model, split, batch=7) == found
    other = evaluate(model, split, batch=60, seed=1)
    changed = {name for name in found if found[name] != other[name]}
    assert changed and all(name.startswith(("rotation", "shear")) for name in changed)


def test_a_model_of_manifold_mixup_does_not_mix(short):
    model = nn.Sequential(Brightness())
    with mmix_fast.ManifoldMixup(model, layers=["", "0"], alpha=1.0) as mixup:
        found = evaluate(model, grey(121, 115, 60, 200))
        assert found["clean"] == 100.0 and found["FGSM 0.03"] == 75.0
        assert mixup.mix is None


@pytest.mark.parametrize(
    ("name", "matrix", "low", "high"),
    [
        ("rotation 20", perturb.rotation, -20, 20),
        ("rotation 40", perturb.rotation, -40, 40),
        ("shear 28.6", perturb.shear, -28.6, 28.6),
        ("shear 57.3", perturb.shear, -57.3, 57.3),
    ],
)
def test_angles_are_drawn_evenly_from_the_range_of_the_paper(name, matrix, low, high):
    deformation = perturb.DEFORMATIONS[name]
    assert deformation.matrix is matrix
    drawn = perturb.Deformation(lambda v: [[v, 0, 0], [0, 0, 0]], low, high)
    values = drawn.matrices(4000, seed=3)[:, 0, 0]
    assert (deformation.low, deformation.high) == (low, high)
    assert low <= values.min() < 0.99 * low and 0.99 * high < values.max() <= high
    assert abs(values.mean()) < 0.03 * high and (values.abs() < high / 2).float().mean() < 0.55
    assert deformation.matrices(3, 3).shape == (3, 2, 3)


def picture() -> torch.Tensor:
    """One bright pixel, right of the center and above it."""
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 1, 6] = 1.0
    return image


def moved(matrix) -> tuple[int, int]:
    """Where the bright pixel is after the map, as (row, column)."""
    return divmod(int(perturb.warp(picture(), torch.tensor([matrix])).argmax()), 9)


def test_the_maps_move_a_pixel_as_they_say():
    assert moved(perturb.rotation(0)) == (1, 6)
    # Three rows above the center and two columns right of it, in the 9x9 image around (4, 4).
    assert moved(perturb.rotation(90)) == (2, 1)
    assert moved(perturb.rotation(-90)) == (6, 7)
    assert moved(perturb.shear(degrees(atan(2 / 3)))) == (1, 8)  # 3 rows up: 2 columns right
    assert moved(perturb.window(1.5)) == (2, 5)  # a larger window shows it nearer to the center
    assert moved(perturb.window(0.75)) == (0, 7)
    whole = perturb.warp(torch.ones(1, 1, 8, 8), torch.tensor([perturb.window(2.0)]))
    assert whole.sum() == 16 and whole[0, 0, 0, 0] == 0  # black beyond the edge
    inner = perturb.warp(torch.ones(1, 1, 8, 8), torch.tensor([perturb.window(0.5)]))
    assert inner.sum() == 64


def test_digits_of_the_small_claims_keep_their_background():
    x = torch.full((1, 784), 2.0)
    x[0, 0] = dark = geometry.DARK
    found = geometry.deform(x, perturb.fixed(2.0), seed=0).view(28, 28)
    assert found[0, 0] == dark and found[13, 13] == 2.0 and (found == dark).sum() >= 784 - 14 * 14


def test_fgsm_is_a_step_of_the_sign_of_the_gradient():
    weight = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
    x, y = torch.tensor([[0.5, 0.5, 0.5], [0.98, 0.02, 0.5]]), torch.tensor([0, 1])
    found = perturb.fgsm(lambda v: v @ weight.T, x, y, 0.1, 0.0, 1.0)
    torch.testing.assert_close(found, torch.tensor([[0.4, 0.6, 0.5], [1.0, 0.0, 0.5]]))
    assert not found.requires_grad and not x.requires_grad


def test_pgd_stays_within_epsilon_and_within_the_pixels():
    weight = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    x, y = torch.tensor([[0.5, 0.99]]), torch.tensor([0])
    model = lambda v: v @ weight.T  # noqa: E731
    torch.testing.assert_close(perturb.pgd(model, x, y, 0.1, 0.04, 2), torch.tensor([[0.42, 1.0]]))
    torch.testing.assert_close(perturb.pgd(model, x, y, 0.1, 0.04, 9), torch.tensor([[0.4, 1.0]]))
    torch.testing.assert_close(perturb.pgd(model, x, y, inf, 0.04, 9), torch.tensor([[0.14, 1.0]]))
