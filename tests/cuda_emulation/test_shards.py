"""The loss kernels on shards of the classes: every code path."""

import pytest

from tests.cuda_emulation.cross_entropy_checks import KINDS
from tests.cuda_emulation.shard_checks import WAYS, check
from tests.support.cases import DTYPES


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_shards_of_every_code_path(emulator, way, kind):
    emulator.launched()
    for number, dtype in enumerate(DTYPES):
        emulator.set_seed(number)
        reduction = ("mean", "none", "mean", "sum")[(number + len(kind)) % 4]
        given = (number + len(kind)) % 4 == 0
        assert check(emulator, way, kind, dtype, reduction, bool(number % 2), given), dtype
    launches = emulator.launched()
    assert any(f"cross_entropy_{WAYS[way][1]}<" in one.name for one in launches)
    assert not any("cross_entropy_maps<" in one.name for one in launches)
    assert way != "cluster" or any(one.cluster > 1 for one in launches)
