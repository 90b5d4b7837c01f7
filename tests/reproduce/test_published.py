"""The paper's numbers, as they are printed."""

import pytest

from benchmarks import perturb
from benchmarks.reproduce import published
from benchmarks.reproduce.data import NAMES

PAPER = published.read()


def config(dataset, network, method, alpha) -> dict:
    return {"dataset": dataset, "network": network, "method": method, "alpha": alpha, "seed": 3}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (
            ("cifar10", "preactresnet18", "manifold-mixup", 2.0),
            {"test_error": 2.95, "test_error_sd": 0.046, "test_nll": 0.137, "epochs": 1200},
        ),
        (
            ("cifar100", "wideresnet28-10", "input-mixup", 1.0),
            {"test_error": 18.89, "test_nll_sd": 0.031, "table": "1b", "epochs": 400},
        ),
        (
            ("svhn", "preactresnet34", "erm", None),
            {"test_error": 2.97, "test_nll": 0.165, "table": "2"},
        ),
        (
            ("tiny-imagenet", "preactresnet18", "manifold-mixup", 0.2),
            {"test_error": 41.3, "test_top5_error": 26.41, "table": "3", "epochs": 2000},
        ),
    ],
    ids=["cifar10", "cifar100", "svhn", "tiny-imagenet"],
)
def test_results(setting, expected):
    found = PAPER.result(config(*setting))
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    "setting",
    [
        ("cifar10", "preactresnet18", "manifold-mixup", 1.0),
        ("cifar10", "preactresnet18", "cutmix", 1.0),
        ("cifar10", "preactresnet50", "erm", None),
        ("tiny-imagenet", "preactresnet34", "erm", None),
    ],
    ids=["alpha", "method", "network", "dataset"],
)
def test_there_is_no_number_of_another_setting(setting):
    assert PAPER.result(config(*setting)) is None
    assert PAPER.accuracy(config(*setting), "shear 57.3") is None


def test_accuracies_after_deformations_and_attacks():
    deformed = config("cifar100", "preactresnet34", "manifold-mixup", 2.0)
    assert PAPER.accuracy(deformed, "shear 57.3") == (44.27, "4")
    assert PAPER.accuracy(deformed, "FGSM 0.03") is None
    attacked = config("cifar10", "preactresnet18", "erm", None)
    assert PAPER.accuracy(attacked, "FGSM 0.03") == (36.32, "7")
    assert PAPER.accuracy(attacked, "PGD 0.03, 7 steps") is None


def test_the_file_is_whole():
    rows = PAPER.results + PAPER.robustness
    settings = [tuple(row[key] for key in published.SETTING) for row in PAPER.results]
    assert len(set(settings)) == len(settings) == 3 * 9 + 9
    assert {row["dataset"] for row in PAPER.results} == set(NAMES)
    assert all({"table", "epochs"} <= row.keys() for row in rows)
    names = {name for row in PAPER.robustness for name in row["accuracy"]}
    assert names == {*perturb.DEFORMATIONS, "FGSM 0.03"}
    assert len(PAPER.robustness) == 4 + 8
    assert PAPER.source["version"] == "arXiv:1806.05236v7"
    assert any("epsilon" in note for note in PAPER.notes)


@pytest.mark.parametrize("row", PAPER.results, ids=lambda row: f"{row['table']}-{row['alpha']}")
def test_mixing_has_an_alpha_and_errors_are_percentages(row):
    assert (row["alpha"] is None) == (row["method"] == "erm")
    assert 2 < row["test_error"] < 60 and 0.1 < row.get("test_nll", 0.2) < 1.2
    assert row.get("test_error_sd", 0.1) < 0.6 and row.get("test_nll_sd", 0.01) < 0.06
