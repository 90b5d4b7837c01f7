"""cutmix_ pastes any dtype of 1, 2, 4 or 8 bytes bit for bit, on every backend."""

import pytest
import torch

import mmix_fast as m
from tests.ops.test_cutmix import LAYOUTS, random_box
from tests.support.cases import DTYPES, PERMS, any_bits

RUNS_ON_GPU = True
BYTES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.float8_e4m3fn,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.int64,
    torch.uint64,
    torch.complex64,
    *DTYPES,
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", BYTES, ids=str)
def test_any_dtype_is_pasted_bit_for_bit(backend, layout, dtype):
    for make_perm in PERMS.values():
        for own_box in (False, True):
            x, bits = any_bits(LAYOUTS[layout](), dtype)
            batch, (height, width) = x.shape[0], x.shape[-2:]
            perm = make_perm(batch)
            boxes = [random_box(height, width) for _ in range(batch if own_box else 1)]
            box = torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4) if own_box else boxes[0]
            want, version = bits.clone(), x._version
            for i, (t, b, l, r) in enumerate(boxes if own_box else boxes * batch):  # noqa: E741
                want[i, ..., t:b, l:r] = bits[perm[i], ..., t:b, l:r]
            out, lam = m.cutmix_(x, perm, box)
            assert out is x and x._version == version + 1
            assert torch.equal(bits, want)
            assert lam.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert lam.shape == ((batch,) if own_box else ())


def shifted(like):
    """Rows one element past those of an aligned tensor."""
    return torch.zeros(like.numel() + 1)[1:].view(like.shape)


# Rows of whole 16-byte vectors, of every size, or nearly so.
VECTORS = {
    "contiguous": torch.zeros(6, 2, 4, 32),
    "channels_last": torch.zeros(5, 3, 4, 16).contiguous(memory_format=torch.channels_last),
    "channels_between": torch.zeros(4, 8, 2, 6).transpose(1, 2),
    "transposed": torch.zeros(4, 2, 16, 6).transpose(2, 3),
    "every_other": torch.zeros(12, 2, 4, 32)[::2],
    "part": torch.zeros(5, 2, 6, 48)[..., 1:5, 16:],
    "shifted": shifted(torch.zeros(5, 2, 4, 32)),
}
SIZED = (torch.bool, torch.float8_e5m2, torch.int16, torch.int32, torch.complex64, torch.float32)


@pytest.mark.parametrize("layout", VECTORS)
@pytest.mark.parametrize("dtype", SIZED, ids=str)
def test_a_paste_into_rows_of_vectors(backend, layout, dtype):
    like = VECTORS[layout]
    batch, (height, width) = like.shape[0], like.shape[-2:]
    boxes = [(0, height, 0, width), (0, 0, 0, width), (1, height, 2, 2), (0, height, 1, width - 1)]
    boxes.append((1, height - 1, width // 2, width // 2 + 1))
    for box in (*boxes, torch.tensor([boxes[i % len(boxes)] for i in range(batch)])):
        whole, bits = any_bits(torch.zeros(like.untyped_storage().nbytes() // 4), dtype)
        place = like.shape, like.stride(), like.storage_offset()
        x, outside, perm = whole.as_strided(*place), bits.clone(), torch.randperm(batch)
        want, before = outside.as_strided(*place), bits.as_strided(*place)
        rows = box.tolist() if isinstance(box, torch.Tensor) else [box] * batch
        for i, (t, b, l, r) in enumerate(rows):  # noqa: E741
            want[i, ..., t:b, l:r] = before[perm[i], ..., t:b, l:r]
        m.cutmix_(x, perm, box)
        assert torch.equal(bits, outside)  # also what lies between the rows


@pytest.mark.on_cpu
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.complex64], ids=str)
def test_a_bad_perm_or_box_pastes_nothing(backend, dtype):
    x, bits = any_bits(torch.zeros(3, 2, 4, 5), dtype)
    before, perm = bits.clone(), torch.tensor([1, 2, 0])
    for bad in (torch.tensor([0, 1, 3]), torch.tensor([0, 1, 1]), torch.tensor([-1, 0, 1])):
        with pytest.raises(ValueError, match="perm must be a permutation"):
            m.cutmix_(x, bad, (0, 2, 0, 2))
    for box in ((0, 5, 0, 1), (2, 1, 0, 1), (0, 1, -1, 1)):
        for bad in (box, torch.tensor(box), torch.tensor([(0, 1, 0, 1), box, (0, 1, 0, 1)])):
            with pytest.raises(ValueError, match=r"bottom <= 4 and 0 <= left <= right <= 5, got"):
                m.cutmix_(x, perm, bad)
    assert torch.equal(bits, before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.complex64], ids=str)
def test_dtypes_without_arithmetic_can_only_be_pasted(backend, dtype):
    perm, x = torch.tensor([1, 0]), torch.ones(2, 3, 3, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    for lam in (0.3, 1, torch.tensor(0.0), torch.zeros(2), float("nan")):
        with pytest.raises(TypeError, match=f"x must be .* for a lam other than .*got {name}"):
            m.cutmix_(x, perm, (0, 1, 0, 1), lam=lam)
    with pytest.raises(
        TypeError, match="x must have 1, 2, 4 or 8 bytes an element, got complex128"
    ):
        m.cutmix_(x.to(torch.complex128), perm, (0, 1, 0, 1))


@pytest.mark.on_cpu
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64], ids=str)
def test_compiled_paste(backend, dtype):
    torch._dynamo.reset()
    start = (torch.randn(3, 2, 4, 5) > 0).to(dtype)
    perm = torch.tensor([1, 2, 0])
    want, want_lam = m.cutmix_(start.clone(), perm, (0, 2, 1, 4))
    step = torch.compile(lambda x, box: m.cutmix_(x, perm, box), fullgraph=True)
    for box in ((0, 2, 1, 4), torch.tensor([0, 2, 1, 4])):
        x = start.clone()
        out, lam = step(x, box)
        assert torch.equal(x, want) and torch.equal(out, want) and torch.equal(lam, want_lam)
