"""What the CUDA kernels are compiled to keeps them fast: no spills, wide accesses, many threads."""

import re

import pytest

from tests.machine_code import cuda_kernels, loops, plans

# Kernels that load or store a whole batch. The others touch a few bytes of each row.
WIDE_LOADS = (
    "mix_slab",
    "mix_gather",
    "mix_gather_in_place",
    "mix_other",
    "sum_rows",
    "cutmix",
    "cross_entropy_rows",
    "cross_entropy_tiles",
    "cross_entropy_maps",
    "binary_cross_entropy_tiles",
)
WIDE_STORES = (*WIDE_LOADS, "mix_slab_aligned", "mix_targets")  # its loads are asynchronous copies
# Classes whose stride is not 1; rows that are not made of aligned vectors.
SCALAR = (
    r"(cross_entropy_rows|mix_gather|mix_gather_in_place|mix_other|sum_rows|cutmix)<[\w ]+, false"
    r"|binary_cross_entropy_tiles<\w+, \w+, 1,"
)
# 512 threads with 4 to 8 loads of 16 bytes each, or 16 of an element, keep 16 to 64 KB of an SM in
# flight; mix_other has 768, of elements 512. In the loss of maps each thread has more: one load for
# each of its classes.
FEW_THREADS = ("mix_gather", "mix_other", "cutmix", "cross_entropy_maps")
# Instructions for each vector of aligned rows: 8 to 12 an element of 4 bytes, 8 to 9.5 one of 2.
# The arithmetic alone takes 3 and 5.5: each product and sum is rounded for itself. Of the binary
# cross-entropy, the arithmetic alone.
INSTRUCTIONS = {
    r"mix_slab_aligned<float": 4 * 8,
    r"mix_slab_aligned<__": 8 * 8,
    r"mix_(gather|gather_in_place|other)<float, true": 4 * 12,
    r"mix_(gather|gather_in_place|other)<__\w+, true": 8 * 9.5,
    r"binary_cross_entropy_tiles<float, false, 4, false": 4 * 17,
    r"binary_cross_entropy_tiles<__\w+, false, 8, false": 8 * 17,
    # Without arithmetic: 44 on sm_90. On sm_100 the loop that nvcc makes also blends single bytes.
    r"cutmix<unsigned char, true": 16 * 5.5,
}
DTYPES = 4  # that a float target or a class weight may have


@pytest.mark.deep
@pytest.mark.parametrize("architecture", cuda_kernels.ARCHITECTURES)
def test_no_spills_wide_accesses_half_occupancy(architecture):
    if cuda_kernels.missing():
        pytest.skip(f"the machine code cannot be looked at here: {cuda_kernels.missing()}")
    kernels = cuda_kernels.inspect_all((architecture,))
    assert {k.name.split("<")[0] for k in kernels} >= set(WIDE_STORES)
    for k in kernels:
        assert k.spilled == 0 and k.stack == 0, k
        assert not any(name.startswith("local") for name in k.accesses), k
        assert k.occupancy >= (0.25 if k.name.startswith(FEW_THREADS) else 0.5), k
        base = "" if re.match(SCALAR, k.name) else k.name.split("<")[0]
        assert base not in WIDE_LOADS or k.accesses.get("load 128"), k
        assert base not in WIDE_STORES or k.accesses.get("store 128"), k
    for pattern, limit in INSTRUCTIONS.items():
        counts = {k.name: k.of_vector for k in kernels if re.match(pattern, k.name)}
        assert counts and all(n is not None and n <= limit for n in counts.values()), counts
    for name, device in plans.DEVICES.items():
        for plan in plans.make(name, kernels) if device.architecture == architecture else ():
            several = plan.op == "loss" and plan.shape[0] > 8192  # the divisors first
            assert plan.launches == 1 + several, plan
            if plan.shape in ((8192, 512), (16384, 768)) and plan.op != "loss":
                assert plan.in_flight >= 16 * 1024, plan
    # Vector loads of float targets and class weights, one of each dtype, on top of the logits'.
    wide = {k.name: k.accesses.get("load 128", 0) for k in kernels}
    dense = [name for name in wide if re.match(r"cross_entropy_(rows|tiles)<.*true>", name)]
    dense = [name for name in dense if not name.endswith("true, false>")]
    assert len(dense) == 4 + 4 + 3  # tiles, rows, and packed rows (not in float64)
    for name in dense:
        assert wide[name] >= wide.get(name.replace("true>", "false>"), 0) + DTYPES, name


def test_instructions_of_the_usual_loops():
    def sass(*blocks):
        lines, address = [], 0
        for label, body in blocks:
            lines.append(f"{label}:")
            for text in body:
                lines.append(f"        /*{address:04x}*/                   {text} ;")
                address += 16
        return "\n".join(lines)

    load, copy, store = "LDG.E.128 R4, [R2]", "LDGSTS.E.BYPASS.128 [R1], [R2]", "STG.E.128 [R2], R4"
    back = "@P0 BRA `({})".format
    both = (".L_x_2", [load, load, "FMUL R4, R4, R5", store, back(".L_x_2")])
    assert loops.of_vector(loops.innermost_loops(sass(both))) == 5
    # Read here, written there; a longer loop for rare cases does not count, nor the one around.
    start = (".L_x_1", ["MOV R1, R2"])
    reads = (".L_x_3", [copy, copy, "IADD3 R2, R2, R3, RZ", back(".L_x_3")])
    writes = (".L_x_4", ["LDS.128 R4, [R1]", store, back(".L_x_4")])
    rare = (".L_x_5", ["NOP"] * 9 + [store, back(".L_x_5")])
    around = (".L_x_6", [back(".L_x_1"), "BRA `(.L_x_9)"])
    found = loops.innermost_loops(sass(start, reads, writes, rare, around))
    assert [loop.instructions for loop in found] == [4, 3, 11]
    assert loops.of_vector(found) == 2 + 3
    assert loops.of_vector(loops.innermost_loops(sass(start))) is None
    exp, skip = "MUFU.EX2 R1, R2", "@P0 BRA `(.L_x_8)"
    short = (".L_x_7", [exp, "FADD R1, R1, 1", exp, skip, exp, exp, "NOP", "NOP"])
    assert loops.of_arithmetic(sass(short, (".L_x_8", [exp])), 2) == 4
    assert loops.of_arithmetic(sass(short), 3) is None
