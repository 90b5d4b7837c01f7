"""The Triton backend without a GPU: in its interpreter, and compiled ahead of time.

Hazards. An element of x may be loaded by one thread and stored by another of the same program; no
program touches another's columns or rows. mix_ and mix_batch_ have a barrier between the loads and
the stores of a tile. The loss gives each element of its in-place gradient to one thread.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.cases import run

triton = pytest.importorskip("triton")
from benchmarks import triton_aot as aot  # noqa: E402

FOLDER = "tests/triton_interpreter"
# Every file of tests/ops whose tests take the backend fixture, except those about tracers
# and transforms, which reach no kernel that the others do not.
SHARED = sorted(
    str(file)
    for file in (Path(__file__).parents[1] / "ops").glob("test_*.py")
    if re.search(r"def test\w*\(backend", file.read_text())
    and file.stem not in ("test_tracing", "test_transforms")
)
# The folder has the cases of these two grids, fewer for each dtype: here they take ten minutes.
GRIDS = "test_bits_in_every_layout or test_parity_grid"
LONG = "gradcheck or test_every_option_at_once or test_arguments"


def interpret(*args):
    # A wrong kernel fails hundreds of cases: of ten, the output can be shown whole.
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


# One case of each kind that is different to the compiler.
QUICK = [
    "mix (256,1000) bfloat16",
    "mix adjoint (64,4096) float64",
    "mix_ (256,4096) bfloat16",
    "mix_ (1024,2048) float16",
    "mix_ (8192,1000) bfloat16",
    "mix_batch_ (128,3,32,32) float32",
    "cutmix_ (128,3,224,224) bfloat16",
    "loss (256,1000) bfloat16",
    "loss (512,21841) float32",
    "loss (4096,128256) bfloat16",
    "loss (8,21,512,512) float16",
    "loss backward_ (512,21841) float32",
    "loss (256,1000) bfloat16, float soft",
    "loss (256,1000) float32, bfloat16 soft",
    "loss (8,21,512,512) bfloat16 soft",
]


def check(row):
    assert row.spilled == 0 and row.stack == 0, row
    assert row.occupancy >= 0.125, row  # few warps, but each with 64 to 128 bytes a lane in flight
    # Rows that 16 bytes divide; but a box begins and ends anywhere, so its elements come singly.
    if row.vector == 128 and not row.name.startswith("cutmix"):
        assert row.accesses["load 128"] and row.accesses["store 128"], row
        if (
            "float32" not in row.name
        ):  # of 16-bit elements, the logits of the labels alone come singly
            assert row.accesses.get("load 16", 0) <= 2 and not row.accesses.get("store 16"), row
        if "soft" in row.name:  # lam, upstream, statistics: a few a row; float targets never
            assert row.accesses.get("load 32", 0) <= 4 and not row.accesses.get("load 16"), row


@pytest.mark.parametrize("case", QUICK)
def test_no_spills_and_wide_accesses(case):
    for row in aot.inspect(case, "sm_90"):
        check(row)


@pytest.mark.deep
@pytest.mark.parametrize("arch", aot.TARGETS)
@pytest.mark.parametrize("case", aot.CASES)
def test_no_spills_and_wide_accesses_anywhere(case, arch):
    for row in aot.inspect(case, arch):
        check(row)


def ttgir(case, arch="sm_90"):
    one = aot.launches(case)[-1]
    return [line.strip() for line in aot.compile_launch(one, arch).asm["ttgir"].splitlines()]


# In place: the tile's loads, a barrier, its stores; in the order of the code, inside any branch.
@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
@pytest.mark.parametrize(
    "case",
    [
        "mix_ (256,4096) bfloat16",
        "mix_ (8192,1000) bfloat16",
        "mix_batch_ (256,3,224,224) bfloat16",
        "cutmix_ (128,3,224,224) bfloat16",
    ],
)
def test_in_place_mixing_has_a_barrier_between_loads_and_stores(case, arch):
    pending, stores = False, 0
    for line in ttgir(case, arch):
        # bf16 are the elements of x alone: not lam, nor labels and soft targets.
        if "tt.load" in line and "!tt.ptr<bf16>" in line:
            pending = True
        elif "ttg.barrier" in line:
            pending = False
        elif "tt.store" in line and "!tt.ptr<bf16>" in line:
            assert not pending, line
            stores += 1
    assert stores == 1


def test_no_contraction_in_a_mix():
    """One fused multiply-add would change the bits; flushing subnormals would too."""
    for case in (
        "mix (256,1000) bfloat16",
        "mix_ (128,64,32,32) float32",
        "mix_ (8192,1000) bfloat16",
    ):
        kernel = aot.compile_launch(aot.launches(case)[-1], "sm_90")
        arithmetic = re.findall(r"\b(FFMA|FADD|FMUL|HFMA2)(\S*)", aot.sass(kernel))
        names = {name for name, _ in arithmetic}
        # HFMA2.MMA may move constants; it is arithmetic on halves that must not be there.
        assert "FFMA" not in names and {"FADD", "FMUL"} <= names
        assert not any("FTZ" in suffix for _, suffix in arithmetic)


@pytest.mark.parametrize(
    "case", ["loss backward_ (512,21841) float32", "loss backward_ (4096,128256) bfloat16"]
)
def test_in_place_gradient_gives_each_element_to_one_thread(case):
    dtype = "bf16" if "bfloat16" in case else "f32"
    lines = ttgir(case)
    found = {"tt.load": [], "tt.store": []}
    for line in lines:
        match = re.search(rf"(tt\.load|tt\.store) .*tensor<1x\d+x!tt\.ptr<{dtype}>, (#\w+)>", line)
        if match:
            found[match[1]].append(match[2])
    # The same layout: who loads an element stores it.
    assert len(found["tt.load"]) == len(found["tt.store"]) == 1
    assert found["tt.load"] == found["tt.store"]
    # Nothing that a thread loads reaches another: neither moved nor reduced.
    values = re.compile(r"(convert_layout|tt\.reduce).*tensor<1x\d{2,}x(f32|bf16)")
    assert not [line for line in lines if values.search(line)]


def test_cycle_order_has_a_barrier_after_each_step():
    one = aot.launches("mix_ (8192,1000) bfloat16")[1]
    assert one.kernel.fn.__name__ == "order_kernel"
    lines = aot.compile_launch(one, "sm_90").asm["ttgir"].splitlines()
    stored, barriers = False, 0
    for line in lines:
        if "scf.for" in line:
            assert not stored, "a step begins, with the stores of the last not behind a barrier"
        elif "tt.store" in line:
            stored = True
        elif "ttg.barrier" in line:
            stored, barriers = False, barriers + 1
    assert barriers == 6


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
    """On meta tensors, which have no values: the ops as a GPU would run them, kernels left out."""
    from mmix_fast.triton import backend as ops
    from mmix_fast.triton import launch

    ran = []
    monkeypatch.setattr(launch.Launch, "run", lambda one: ran.append(one))
    monkeypatch.setattr(ops, "INTERPRETED", type("No", (), {"value": True}))
    for batch in (128, 5000):
        x, lam = aot.meta(batch, 10), aot.meta()
        y = p = aot.meta(batch, dtype=torch.int64)
        ops.mix(x, p, lam, 0, True)
        ops.mix_(x, p, lam, 0)
        ops.mix_batch_(x, y, p, lam, 10, 0.1, -100, torch.float32)
        images, box = aot.meta(128, 3, 32, 32), aot.meta(128, 4, dtype=torch.int64)
        ops.cutmix_(images, aot.meta(128, dtype=torch.int64), box, lam)
        for reduction in ("mean", "none"):
            inputs = (y, p, None, lam, None, -100, reduction, 0.1, 0.1, 30.0)
            loss, stats, gradient = ops.cross_entropy(x, *inputs, 1.0)
            ops.cross_entropy_rescale_(gradient, loss, stats, x, *inputs)
            ops.cross_entropy_backward_(loss, stats, x, *inputs)
    assert len(ran) > 20
    one = [each for each in ran if each.kernel.fn.__name__ == "batch_kernel"]
    assert len(one) == 1 and ran.index(one[0]) == 2  # mix_batch_ of a slab is one launch
