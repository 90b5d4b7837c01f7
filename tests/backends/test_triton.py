"""The Triton backend without a GPU: its kernels in the interpreter, and how Python loads it.

What the kernels are compiled to: tests/machine_code/test_triton_kernels.py.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.cases import meta, run

pytest.importorskip("triton")

FOLDER = "tests/triton_interpreter"
# Every file of tests/ops whose tests take the backend fixture, except those on tracers and
# transforms, which run no kernel that the others do not.
SHARED = sorted(
    str(file)
    for file in (Path(__file__).parents[1] / "ops").glob("test_*.py")
    if re.search(r"def test\w*\(backend", file.read_text())
    and file.stem not in ("test_tracing", "test_transforms")
)
# Left out: these two grids take ten minutes. FOLDER has the same cases in fewer dtypes.
GRIDS = "test_bits_in_every_layout or test_parity_grid"
LONG = (
    "gradcheck or test_every_option_at_once or test_any_dtype or test_arguments.py or test_lam.py "
    "or test_mixed_target.py or test_cutmix_bytes.py or test_layouts or test_threshold_target_b"
)


def interpret(*args):
    # A wrong kernel fails hundreds of cases. After ten, the output is still short enough to show.
    options = ["-q", "-p", "no:cacheprovider", "--maxfail=10"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *args],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and " skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.first
def test_kernels_in_the_interpreter():
    interpret(FOLDER, "--every-kernel")


@pytest.mark.first
def test_shared_cases_in_the_interpreter():
    interpret("-k", f"triton and not ({GRIDS} or {LONG})", *SHARED)


@pytest.mark.deep
@pytest.mark.first
def test_long_shared_cases_in_the_interpreter():
    interpret("-k", f"triton and ({LONG})", *SHARED)


CALLS = """
import sys, torch, mmix_fast as m
x, y, p = torch.rand(3, 2), torch.tensor([0, 1, 1]), torch.tensor([1, 2, 0])
m.mix(x, p, .3); m.mix_(x, p, .3); m.mix_targets(y, p, .3, num_classes=2)
m.mix_batch_(x, y, p, .3, num_classes=2)
m.mixed_cross_entropy(x.requires_grad_(), y, p, .3).backward()
"""


def test_triton_is_not_imported_before_its_use():
    before = "import sys, torch; had = 'triton' in sys.modules\n"
    done = run(before + CALLS + "print(had or 'triton' not in sys.modules)")
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("gpu", [False, True])
def test_without_the_extension(gpu):
    gone = "import sys; sys.modules['mmix_fast._C'] = None\nimport torch\n"
    gone += f"torch.cuda.is_available = lambda: {gpu}\n"
    done = run(gone + CALLS + "from mmix_fast.info import table; print(table())")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert re.match(r"reference +usable", lines["reference"])
    assert re.match(r"cpp +not usable +the compiled extension is missing", lines["cpp"])
    want = r"triton +usable" if gpu else r"triton +not usable +torch sees no GPU"
    assert re.match(want, lines["triton"])


def test_a_missing_or_broken_triton_is_a_reason():
    gone = "import sys; sys.modules['triton'] = None\n"
    done = run(gone + CALLS + "print(m.backends()['triton'])")
    assert "usable=False" in done.stdout and "triton cannot be imported" in done.stdout, done.stderr
    forced = run(gone + CALLS, MMIX_FAST_BACKEND="triton")
    assert "RuntimeError: backend 'triton' cannot serve this call" in forced.stderr
    assert "triton cannot be imported" in forced.stderr


def test_launches_read_no_value_on_the_host(monkeypatch):
    """The ops run on meta tensors, which have no values, without launching kernels."""
    from mmix_fast.triton import backend as ops
    from mmix_fast.triton import launch

    ran = []
    monkeypatch.setattr(launch.Launch, "run", lambda one: ran.append(one))
    monkeypatch.setattr(ops, "INTERPRETED", type("No", (), {"value": True}))
    for batch in (128, 5000):
        x, lam = meta(batch, 10), meta()
        y = p = meta(batch, dtype=torch.int64)
        ops.mix(x, p, lam, 0, True)
        ops.mix_(x, p, lam, 0)
        ops.mix_other_(x, meta(7, 10), p, lam, 0)
        ops.sum_rows_(meta(7, 10), x, lam, p, meta(8, dtype=torch.int64), 0)
        ops.mix_targets(y, None, lam, 10, 0.1, -100, torch.float32, y)
        ops.mix_batch_(x, y, p, lam, 10, 0.1, -100, torch.float32)
        images, box = meta(128, 3, 32, 32), meta(128, 4, dtype=torch.int64)
        ops.cutmix_(images, meta(128, dtype=torch.int64), box, lam)
        for reduction in ("mean", "none"):
            inputs = (y, p, None, lam, None, None, -100, reduction, 0.1, 0.1, 30.0, 0, 0)
            loss, stats, gradient = ops.cross_entropy(x, *inputs, 1.0)
            ops.cross_entropy_rescale_(gradient, loss, stats, x, *inputs)
            ops.cross_entropy_backward_(loss, stats, x, *inputs)
            shard = (*inputs[:-2], 20, 40)
            part = ops.cross_entropy_part(x, *shard)
            ops.cross_entropy_backward_(loss, part[:, 1:], x, *shard)
            inputs = (y, p, None, lam, None, None, reduction, 0.1, 0.2)
            loss, gradient = ops.binary_cross_entropy(x, *inputs, 1.0)
            ops.binary_cross_entropy_rescale_(gradient, loss, x, *inputs)
            ops.binary_cross_entropy_backward_(loss, x, *inputs)
    assert len(ran) > 20
    before, few = len(ran), y[:128]
    inputs = (few, few, None, lam, None, meta(4, dtype=torch.float64), -100, "mean", 0.1, 0.1, 30.0)
    ops.cross_entropy_(x[:128], *inputs, 0, 0)  # a loss in place is one launch
    assert [each.kernel.fn.__name__ for each in ran[before:]] == ["loss_kernel"]
    maps = meta(128, 10, 6, 4).transpose(2, 3)  # copied once, so that the copy is overwritten
    labels = meta(128, 4, 6, dtype=torch.int64)
    ops.cross_entropy_(maps, labels, None, labels, *inputs[3:], 0, 0)
    assert ran[-1].args["OPT"].INPLACE.value
    one = [each for each in ran if each.kernel.fn.__name__ == "batch_kernel"]
    assert len(one) == 1 and ran.index(one[0]) == 5  # mix_batch_ of a slab is one launch
