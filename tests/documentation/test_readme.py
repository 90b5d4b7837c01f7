"""The README's training loops run, and add as few lines as they mark."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmix_fast
from benchmarks.commands import COMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def loop(needle, allowed):
    """The README's loop that contains ``needle``: (names it uses, its code, parameters before it).

    At most ``allowed`` of its lines are marked as new.
    """
    (code,) = [block for block in BLOCKS if needle in block]
    assert code.count("# new") <= allowed
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10)
    )
    loader = [(torch.randn(6, 3, 8, 8), torch.randint(0, 10, (6,))) for _ in range(4)]
    names = {"model": model, "loader": loader, "mmix_fast": mmix_fast, "torch": torch, "F": F}
    names["optimizer"] = torch.optim.SGD(model.parameters(), 0.01)
    before = [p.clone() for p in model.parameters()]
    return names, code, before


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


def test_every_block_of_python_is_one_of_the_three():
    assert len(BLOCKS) == 3


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
    names |= {"top": 2, "bottom": 6, "left": 0, "right": 4}
    plain = dict(names, x=x.clone())
    if equivalent.startswith("x["):  # an assignment
        exec(equivalent, plain)
        want = plain["x"]
    else:
        want = eval(equivalent, plain)
    exec(call if " = " in call.partition("(")[0] else f"x = {call}", names)
    torch.testing.assert_close(names["x"], want)


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
        elif words[0] == "python":
            known = {"mmix_fast.info": [], "benchmarks": COMMANDS}[words[2]]
            assert words[1] == "-m" and (words[3:4] == [] or words[3] in known)
        else:
            assert words[:2] == ["pip", "install"]


def test_inplace_backward_says_what_reading_the_logits_gives():
    """No error is possible there, so the docstring must say it."""
    words = mmix_fast.mixed_cross_entropy.__doc__.split("inplace_backward:")[1].split("Returns")[0]
    assert "read" in words and "hold the gradient" in words
