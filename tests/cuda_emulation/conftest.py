import pytest

from tests.cuda_emulation import emulation


@pytest.fixture
def emulator():
    """The emulator as an H100; threads and blocks run in the same random order in each run."""
    emulator = emulation.load()
    emulator.set_seed(0)
    yield emulator
    emulator.count_traffic(False)
    emulator.set_device()
