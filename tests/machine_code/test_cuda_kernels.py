"""What the CUDA kernels are compiled to keeps them fast: no spills, wide accesses, many threads."""

import re

import pytest

from tests.machine_code import cuda_kernels

# Kernels that load or store a whole batch. The others touch a few bytes of each row.
WIDE_LOADS = (
    "mix_slab",
    "mix_gather",
    "mix_gather_in_place",
    "cutmix",
    "cross_entropy_rows",
    "cross_entropy_tiles",
    "cross_entropy_maps",
)
WIDE_STORES = (*WIDE_LOADS, "mix_slab_aligned", "mix_targets")  # its loads are asynchronous copies
# Classes whose stride is not 1; rows that are not made of aligned vectors.
SCALAR = r"(cross_entropy_rows|mix_gather|mix_gather_in_place|cutmix)<\w+, false"
# 512 threads with 4 to 8 loads of 16 bytes each, or 16 of an element, keep 16 to 64 KB of an SM in
# flight. In the loss of
# maps each thread has more: one load for each of its classes.
FEW_THREADS = ("mix_gather", "cutmix", "cross_entropy_maps")
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
    # Vector loads of float targets and class weights, one of each dtype, on top of the logits'.
    wide = {k.name: k.accesses.get("load 128", 0) for k in kernels}
    dense = [name for name in wide if re.match(r"cross_entropy_(rows|tiles)<.*true>", name)]
    dense = [name for name in dense if not name.endswith("true, false>")]
    assert len(dense) == 4 + 4 + 3  # tiles, rows, and packed rows (not in float64)
    for name in dense:
        assert wide[name] >= wide.get(name.replace("true>", "false>"), 0) + DTYPES, name
