import importlib
import os

import pytest

# tests/backends/test_triton.py runs this folder in a process in which Triton interprets kernels.
if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
else:
    importlib.import_module("mmix_fast.triton.backend")  # registers the ops


def pytest_addoption(parser):
    parser.addoption("--every-kernel", action="store_true", help="fail if a kernel did not run")


def pytest_sessionfinish(session):
    if session.config.getoption("--every-kernel", default=False):
        from tests.triton_interpreter import recorder

        missing = recorder.missing()
        if missing:
            print(f"\nnot run: {missing}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def record(monkeypatch):
    from mmix_fast.triton.launch import Launch
    from tests.triton_interpreter import recorder

    run = Launch.run

    def recorded(launch):
        recorder.note(launch)
        run(launch)

    monkeypatch.setattr(Launch, "run", recorded)


LARGE = {
    "triton.launch.SLAB_ROWS": 3,
    "triton.launch.KNOWN_ROWS": 2,
    "triton.launch.WALK_ROWS": 4,
    "triton.launch.COUNT_BLOCK": 4,
    "triton.loss_launch.PARTIAL_SUMS": 2,
    "triton.loss_launch.WHOLE_CLASSES": {4: 4, 8: 4},
    "triton.loss_launch.CHUNK_BYTES": 32,
    "triton.loss_launch.LINE_ROWS": 2,
    "triton.loss_launch.TILE_BYTES": 64,
    "triton.binary_loss_launch.MAX_ROWS": 2,
}


@pytest.fixture(params=["small", "large"])
def size(request, monkeypatch):
    """Small batches and rows, also with limits that make the code treat them as large."""
    if request.param == "large":
        for name, value in LARGE.items():
            monkeypatch.setattr(f"mmix_fast.{name}", value)
    return request.param
