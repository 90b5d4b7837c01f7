"""The README's training loops run, and add as few lines as they mark."""

import re

import pytest
import torch
import torch.nn.functional as F

import mmix_fast
from benchmarks.commands import COMMANDS
from tests.support.readme import README, ROOT, loop


def test_plain_loop():
    names, code, before = loop("ManifoldMixup(model", 2)
    exec(code, names)
    assert names["mixup"].layers == ("", "1", "3") and names["mixup"].mix is not None
    assert all(
        not torch.equal(a, b) for a, b in zip(before, names["model"].parameters(), strict=True)
    )


def test_timm_loop():
    pytest.importorskip("numpy")
    names, code, _ = loop("SoftTargetCrossEntropy", 3)
    exec(code, names)
    assert names["loss"].isfinite() and names["y"].shape == (6, 10)


def test_the_ops_by_themselves():
    names, code, before = loop("sample_mix(x", 0)
    names["x"], names["y"] = names["loader"][0]
    exec(code, names)
    names["loss"].backward()
    gradients = [p.grad for p in names["model"].parameters()]
    assert len(before) == len(gradients) and all(g.abs().sum() > 0 for g in gradients)


def api_rows():
    table = README[README.index("| call | equivalent PyTorch |") :].split("\n\n")[0]
    return [
        [cell.strip().strip("`") for cell in line.strip("| ").split(" | ")][:2]
        for line in table.splitlines()[2:]
    ]


@pytest.mark.parametrize(("call", "equivalent"), api_rows()[1:])
def test_the_calls_equal_their_equivalents(call, equivalent):
    names = {name: getattr(mmix_fast, name) for name in mmix_fast.__all__}
    names |= {"one_hot": lambda y, count: F.one_hot(y, count).float()}
    names |= {"cross_entropy": F.cross_entropy, "linear": F.linear}
    names["bce_with_logits"] = F.binary_cross_entropy_with_logits
    x, u = torch.randn(2, 6, 3, 8, 8)
    names |= {"x": x, "u": u, "y": torch.tensor([0, 4, 4, 9, 3, 1]), "C": 10}
    names |= {"z": torch.randn(6, 10), "m": (torch.rand(6, 10) < 0.3).float()}
    names |= {"h": torch.randn(6, 5), "w": torch.randn(10, 5)}
    names |= {"perm": torch.tensor([3, 0, 1, 5, 2, 4]), "lam": torch.tensor(0.3)}
    plain = dict(names, x=x.clone())
    if equivalent.startswith("x["):  # an assignment
        exec(equivalent, plain)
        want = plain["x"]
    else:
        want = eval(equivalent, plain)
    torch.testing.assert_close(eval(call, names), want)


def test_the_draw():
    call, equivalent = api_rows()[0]
    names = {"sample_mix": mmix_fast.sample_mix, "B": 64, "alpha": 2.0, "torch": torch}
    names["Beta"] = torch.distributions.Beta
    for draw in (eval(call, names), eval(equivalent, names)):
        perm, lam = draw
        assert torch.equal(perm.sort()[0], torch.arange(64)) and 0 <= lam <= 1


def test_every_shell_command_is_one_of_ours():
    """make and `python -m benchmarks` know the words that the README gives them."""
    makefile = (ROOT / "Makefile").read_text()
    for line in "".join(re.findall(r"```bash\n(.*?)```", README, re.S)).splitlines():
        words = line.partition("#")[0].split()
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile
        else:
            assert words[:3] == ["python", "-m", "benchmarks"] and words[3] in COMMANDS


def test_inplace_backward_says_what_reading_the_logits_gives():
    """No error is possible there, so the docstring must say it."""
    words = mmix_fast.mixed_cross_entropy.__doc__.split("inplace_backward:")[1].split("Returns")[0]
    assert "read" in words and "hold the gradient" in words
