"""Which dimensions merge: csrc/row_layout.h and the launch files of the Triton backend agree."""

from itertools import product

import pytest
import torch

from tests.cuda_emulation import emulation

launch = pytest.importorskip("mmix_fast.triton.launch")
loss_launch = pytest.importorskip("mmix_fast.triton.loss_launch")

TENSORS = {
    "contiguous": lambda: torch.empty(4, 3, 5, 6),
    "channels_last": lambda: torch.empty(4, 3, 5, 6).to(memory_format=torch.channels_last),
    "channels_last_3d": lambda: torch.empty(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d),
    "every_second_sample": lambda: torch.empty(8, 3, 5, 6)[::2],
    "every_second_column": lambda: torch.empty(4, 3, 5, 12)[..., ::2],
    "cropped": lambda: torch.empty(4, 3, 9, 9)[:, :, 2:7, 1:7],
    "some_channels": lambda: torch.empty(4, 7, 5, 6)[:, 2:5],
    "transposed": lambda: torch.empty(4, 3, 5, 6).transpose(2, 3),
    "batch_second": lambda: torch.empty(7, 4, 16).transpose(0, 1),
    "expanded": lambda: torch.empty(4, 3, 1, 1).expand(4, 3, 5, 6),
    "ones": lambda: torch.empty(4, 1, 5, 1, 6),
    "one_class": lambda: torch.empty(4, 1, 5, 6),
    "one_sample": lambda: torch.empty(1, 3, 5, 6),
    "one_row": lambda: torch.empty(1, 3),
    "vector": lambda: torch.empty(9),
    "matrix": lambda: torch.empty(9, 7),
    "rows_adjacent": lambda: torch.empty(7, 9).t(),
}


@pytest.fixture(scope="module")
def ops():
    emulation.load()
    return getattr(torch.ops, emulation.NAMESPACE)


def dims(numbers):
    return list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))


@pytest.mark.parametrize("name", TENSORS)
def test_the_columns_of_a_sample(ops, name):
    x = TENSORS[name]()
    for dim, out in product(range(x.ndim), (x, torch.empty_like(x), torch.empty(x.shape))):
        run, runs, *rest = ops.sample_layout(x, out, dim)
        merged = [(run, 1, 1)] * (run != 1) + dims(rest)
        assert run * runs * x.shape[dim] == x.numel()
        groups = launch.columns(x, out, dim)
        if groups is None:
            assert len(merged) > 2
        else:
            assert [group for group in groups if group[0] != 1] == merged


def row_offsets(*dims):
    """Of all rows, from (size, stride) of their dimensions, outermost first."""
    index = [range(size) for size, _ in dims]
    return [sum(i * s for i, (_, s) in zip(at, dims, strict=True)) for at in product(*index)]


@pytest.mark.parametrize("name", [name for name in TENSORS if name != "vector"])
def test_the_rows_of_logits(ops, name):
    z = TENSORS[name]()
    truth = row_offsets(*[(z.shape[d], z.stride(d)) for d in range(z.ndim) if d != 1])
    class_stride, *rest = ops.class_rows(z)
    merged = dims(rest)
    assert class_stride == (z.stride(1) if z.shape[1] != 1 else 1)
    assert all(out_stride == 0 for _, _, out_stride in merged)
    assert row_offsets(*[(size, stride) for size, stride, _ in reversed(merged)]) == truth
    strides = loss_launch.row_strides(z)
    inner = z[0, 0].numel()
    if strides is None:
        assert len(merged) > 1
    elif inner == 1:
        assert row_offsets((len(z), strides[1])) == truth
    else:
        assert row_offsets((len(z), strides[0]), (inner, strides[1])) == truth
