"""The training loops of the README, and the names that they use."""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import mmix_fast

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
