import pytest
import recorder

from mmix_fast import triton_backend, triton_launch, triton_loss_launch  # noqa: F401  the ops


@pytest.fixture(autouse=True)
def record(monkeypatch):
    run = triton_launch.Launch.run

    def recorded(launch):
        recorder.note(launch)
        run(launch)

    monkeypatch.setattr(triton_launch.Launch, "run", recorded)


@pytest.fixture(params=["small", "large"])
def size(request, monkeypatch):
    """Small batches and rows as they are; then the same ones treated as large."""
    if request.param == "large":
        for module, name, value in (
            (triton_launch, "SLAB_ROWS", 3),
            (triton_launch, "KNOWN_ROWS", 2),
            (triton_launch, "WALK_ROWS", 4),
            (triton_launch, "COUNT_BLOCK", 4),
            (triton_loss_launch, "PARTIAL_SUMS", 2),
            (triton_loss_launch, "WHOLE_CLASSES", {4: 4, 8: 4}),
            (triton_loss_launch, "CHUNK_BYTES", 32),
            (triton_loss_launch, "LINE_ROWS", 2),
            (triton_loss_launch, "TILE_BYTES", 64),
        ):
            monkeypatch.setattr(module, name, value)
    return request.param
