"""What the Triton kernels are compiled to keeps them fast, bit-exact and free of races.

Hazard: one thread may load an element of x and another thread of the same program store it. (No two
programs touch the same element.) So mix_ and mix_batch_ have a barrier between the loads and the
stores of a tile, and the loss gives each element of its in-place gradient to one thread. A forward
that writes the gradient over the logits has a barrier too: many threads read a label's logit.
"""

import re

import pytest

pytest.importorskip("triton")
from tests.machine_code import triton_kernels as aot
from tests.machine_code.loops import innermost_loops

# One case of each kind that the compiler treats differently.
QUICK = [
    "mix (256,1000) bfloat16",
    "mix adjoint (64,4096) float64",
    "mix_ (256,4096) bfloat16",
    "mix_ (1024,2048) float16",
    "mix_ (8192,1000) bfloat16",
    "mix_batch_ (128,3,32,32) float32",
    "mix_ other (256,1000) bfloat16",
    "sum_rows (256,1000) bfloat16",
    "cutmix_ (128,3,224,224) bfloat16",
    "cutmix_ (256,3,224,224) uint8",
    "loss (256,1000) bfloat16",
    "loss (512,21841) float32",
    "loss (4096,128256) bfloat16",
    "loss (8,21,512,512) float16",
    "loss backward_ (512,21841) float32",
    "loss in place (1024,128256) bfloat16",
    "loss part (4096,64128) bfloat16",
    "loss shard backward_ (4096,64128) bfloat16",
    "loss (256,1000) bfloat16, float soft",
    "loss (256,1000) float32, bfloat16 soft",
    "loss (8,21,512,512) bfloat16 soft",
    "binary (256,1000) bfloat16",
    "binary (1024,21841) bfloat16 weighted",
    "binary (512,10000) float32 bytes thresholded",
    "binary (8,21,512,512) bfloat16 bytes",
    "binary backward (256,1000) bfloat16 none",
]


def check(row, case):
    assert row.spilled == 0 and row.stack == 0, row
    assert row.occupancy >= 0.125, row  # few warps, each with 64 to 128 bytes a lane in flight
    # Rows are multiples of 16 bytes. cutmix_ is exempt: a box begins and ends at any element.
    if row.vector == 128 and not case.startswith("cutmix"):
        assert row.accesses["load 128"], row
        assert "loss part" in case or row.accesses["store 128"], row  # a part is 4 numbers a row
        # The only 16-bit loads are of single logits: those of the labels.
        if "float32" not in row.name:
            assert row.accesses.get("load 16", 0) <= 2 and not row.accesses.get("store 16"), row
        if "bytes" in row.name:
            assert not row.accesses.get("load 8") and not row.accesses.get("load 16"), row
        # The only 32-bit loads are a few for each row (lam, upstream, statistics), never targets.
        if "soft" in row.name:
            few = 5 if "shard" in case else 4
            assert row.accesses.get("load 32", 0) <= few and not row.accesses.get("load 16"), row


@pytest.mark.parametrize("case", QUICK)
def test_no_spills_and_wide_accesses(case):
    for row in aot.inspect(case, "sm_90"):
        check(row, case)


@pytest.mark.deep
@pytest.mark.parametrize("arch", aot.TARGETS)
@pytest.mark.parametrize("case", aot.CASES)
def test_no_spills_and_wide_accesses_anywhere(case, arch):
    for row in aot.inspect(case, arch):
        check(row, case)


def ttgir(case, arch="sm_90"):
    one = aot.launches(case)[-1]
    return [line.strip() for line in aot.compile_launch(one, arch).asm["ttgir"].splitlines()]


# The order in the code, in each branch: the tile's loads, a barrier, the tile's stores.
@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
@pytest.mark.parametrize(
    "case",
    [
        "mix_ (256,4096) bfloat16",
        "mix_ (8192,1000) bfloat16",
        "mix_batch_ (256,3,224,224) bfloat16",
        "cutmix_ (128,3,224,224) bfloat16",
        "cutmix_ (4096,3,32,32) bfloat16",
        "cutmix_ (256,3,224,224) uint8",
        "cutmix_ (4096,3,32,32) uint8",
    ],
)
def test_in_place_mixing_has_a_barrier_between_loads_and_stores(case, arch):
    # Only x is bf16, or bytes: lam, boxes, labels and soft targets are not.
    x = "!tt.ptr<i8>" if "uint8" in case else "!tt.ptr<bf16>"
    pending, stores = False, 0
    for line in ttgir(case, arch):
        if "tt.load" in line and x in line:
            pending = True
        elif "ttg.barrier" in line:
            pending = False
        elif "tt.store" in line and x in line:
            assert not pending, line
            stores += 1
    assert stores == 1


def instructions_of_an_element(case):
    """Of the innermost loop, which a thread runs for its elements of a tile."""
    one = aot.launches(case)[-1]
    tile = one.args["TILE"]
    elements = tile.BLOCK_ROWS.value * tile.BLOCK_CLASSES.value / (32 * one.warps)
    loops = innermost_loops(aot.sass(aot.compile_launch(one, "sm_90")))
    return max(loop.instructions for loop in loops) / elements


# An H100 at its full bandwidth has time for 68 instructions of an element that moves 8 bytes, 34 of
# one that moves 4. The exponential, the logarithm and the division take 25.
@pytest.mark.parametrize(
    "case, limit",
    [
        ("binary (256,1000) float32", 42),
        ("binary (256,1000) bfloat16", 42),
        ("binary (256,1000) bfloat16 thresholded", 48),
        ("binary (256,1024) float32 bytes", 51),
        ("binary (8,21,512,512) float16", 42),
        ("binary backward_ (512,10000) float32 bytes", 33),
    ],
)
def test_a_binary_cross_entropy_takes_few_instructions(case, limit):
    assert instructions_of_an_element(case) <= limit


def test_no_contraction_in_a_mix():
    """A fused multiply-add, or flushing subnormals to zero, would change bits."""
    for case in (
        "mix (256,1000) bfloat16",
        "mix_ (128,64,32,32) float32",
        "mix_ (8192,1000) bfloat16",
    ):
        kernel = aot.compile_launch(aot.launches(case)[-1], "sm_90")
        arithmetic = re.findall(r"\b(FFMA|FADD|FMUL|HFMA2)(\S*)", aot.sass(kernel))
        names = {name for name, _ in arithmetic}
        # HFMA2.MMA may appear: the compiler loads constants with it.
        assert "FFMA" not in names and {"FADD", "FMUL"} <= names
        assert not any("FTZ" in suffix for _, suffix in arithmetic)


@pytest.mark.parametrize(
    "case",
    [
        "loss backward_ (512,21841) float32",
        "loss backward_ (4096,128256) bfloat16",
        "loss shard backward_ (4096,64128) bfloat16",
        "binary backward_ (512,10000) float32 bytes",
        "binary backward_ (1024,21841) bfloat16",
    ],
)
def test_in_place_gradient_gives_each_element_to_one_thread(case):
    dtype = "bf16" if "bfloat16" in case else "f32"
    lines = ttgir(case)
    found = {"tt.load": [], "tt.store": []}
    for line in lines:
        match = re.search(rf"(tt\.load|tt\.store) .*tensor<1x\d+x!tt\.ptr<{dtype}>, (#\w+)>", line)
        if match:
            found[match[1]].append(match[2])
    # The same layout: the thread that loads an element stores it.
    assert len(found["tt.load"]) == len(found["tt.store"]) == 1
    assert found["tt.load"] == found["tt.store"]
    # No thread uses an element that another has loaded: no layout conversion, no reduction.
    values = re.compile(r"(convert_layout|tt\.reduce).*tensor<1x\d{2,}x(f32|bf16)")
    assert not [line for line in lines if values.search(line)]


LOSSES_IN_PLACE = [
    "loss in place (1024,16032) bfloat16",
    "loss in place (1024,128256) bfloat16",
    "loss in place (256,1000) float32",
    "loss in place (4096,50257) bfloat16 smoothed",
]


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
@pytest.mark.parametrize("case", LOSSES_IN_PLACE)
def test_a_loss_in_place_has_a_barrier_before_the_gradient(case, arch):
    pointers = rf"!tt\.ptr<{'bf16' if 'bfloat16' in case else 'f32'}>, (#\w+)>"
    lines = ttgir(case, arch)
    assert sum("ttg.barrier" in line for line in lines) == 1
    at = next(number for number, line in enumerate(lines) if "ttg.barrier" in line)
    labels = [n for n, line in enumerate(lines) if re.search(rf"tt\.load .*<1x{pointers}", line)]
    assert all(n < at for n in labels) and len(labels) >= (0 if "smoothed" in case else 2)
    stores = [
        n for n, line in enumerate(lines) if re.search(rf"tt\.store .*<1x\d+x{pointers}", line)
    ]
    assert len(stores) == 1 and stores[0] > at
    # What pass 2 loads again is stored by the thread that loads it.
    again = [re.search(rf"tt\.load .*<1x\d+x{pointers}", line) for line in lines[at:]]
    (layout,) = re.search(rf"<1x\d+x{pointers}", lines[stores[0]]).groups()
    assert all(found[1] == layout for found in again if found)


@pytest.mark.parametrize("case", LOSSES_IN_PLACE[:2])
def test_the_barrier_of_a_loss_in_place_is_in_the_machine_code(case):
    text = aot.sass(aot.compile_launch(aot.launches(case)[-1], "sm_90"))
    code = re.findall(r"\b(LDG\.E\.U16|BAR\.SYNC|STG\.E\.128)", text)
    last_label = len(code) - 1 - code[::-1].index("LDG.E.U16")
    assert "BAR.SYNC" in code[last_label : code.index("STG.E.128")]


@pytest.mark.parametrize(
    "case",
    [
        "loss (256,1000) bfloat16",
        "loss (512,21841) float32",
        "loss backward_ (4096,128256) bfloat16",
        "loss part (4096,64128) bfloat16",
        "loss shard backward_ (4096,64128) bfloat16",
    ],
)
def test_no_other_loss_waits_at_a_barrier_of_its_own(case):
    assert not any("ttg.barrier" in line for line in ttgir(case))


@pytest.mark.parametrize(
    "case, passes",
    [
        ("loss part (4096,64128) bfloat16", 1),
        ("loss (512,21841) float32 soft targets", 2),
        ("loss shard backward (512,20000) float32 soft targets", 1),
        ("loss shard backward_ (4096,64128) bfloat16 smoothed", 1),
    ],
)
def test_passes_over_the_classes(case, passes):
    """A part reads the logits once; the backward of a shard need not sum its targets first."""
    assert sum("scf.for" in line for line in ttgir(case)) == passes


def test_cycle_order_has_a_barrier_after_each_step():
    one = aot.launches("mix_ (8192,1000) bfloat16")[1]
    assert one.kernel.fn.__name__ == "order_kernel"
    lines = aot.compile_launch(one, "sm_90").asm["ttgir"].splitlines()
    stored, barriers = False, 0
    for line in lines:
        if "scf.for" in line:
            assert not stored, "a step begins without a barrier after the stores of the step before"
        elif "tt.store" in line:
            stored = True
        elif "ttg.barrier" in line:
            stored, barriers = False, barriers + 1
    assert barriers == 6
