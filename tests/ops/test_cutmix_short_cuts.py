"""Fast paths of cutmix_: blocks of image lines, swaps of two rows, copies in pieces, int boxes."""

import pytest
import torch

import mmix_fast as m
from tests.support.cases import any_bits, expected_mix

# Images of fewer and of more lines than a block of the kernel holds. Lines are no multiple of the
# pieces that are copied at once; the last lines are too long to be copied in pieces.
SHAPES = ((7, 3, 9, 11), (5, 3, 60, 70), (6, 2, 45, 300))
PERMS = {
    "flip": lambda n: torch.arange(n).flip(0),  # swaps pairs; in an odd batch one row stays
    "roll": lambda n: torch.arange(n).roll(1),
    "both": lambda n: torch.tensor([1, 0, 3, 4, 2, *range(5, n)]),
}


def inner_box(height, width):
    return height // 9, height - 2, 1, width - 3


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("pairing", PERMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_boxes_of_more_lines_than_a_block(shape, pairing, channels_last, threads):
    batch, _, height, width = shape
    perm, one = PERMS[pairing](batch), inner_box(height, width)
    each = [one, (0, height, 0, width), (3, 3, 2, 2), (2, height, 5, 6), *[one] * (batch - 4)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for boxes in ([one] * batch, each):
            box = one if boxes is not each else torch.tensor(each)
            for lam in (0.0, 0.3, torch.rand(batch)):
                x = torch.randn(shape)
                if channels_last:
                    x = x.contiguous(memory_format=torch.channels_last)
                want, mixed = x.clone(), expected_mix(x, perm, torch.as_tensor(lam).expand(batch))
                for i, (top, bottom, left, right) in enumerate(boxes):
                    want[i, ..., top:bottom, left:right] = mixed[i, ..., top:bottom, left:right]
                assert torch.equal(m.cutmix_(x, perm, box, lam=lam)[0], want)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.int64], ids=str
)
@pytest.mark.parametrize("pairing", PERMS)
def test_boxes_of_every_width(dtype, pairing):
    """Copies and swaps write the whole line, with its incomplete last piece, and nothing beyond."""
    perm = PERMS[pairing](5)
    for columns in range(1, 81):
        x, bits = any_bits(torch.zeros(5, 1, 3, 90), dtype)
        want = bits.clone()
        want[..., 1:2, 4 : 4 + columns] = bits[perm][..., 1:2, 4 : 4 + columns]
        m.cutmix_(x, perm, (1, 2, 4, 4 + columns))
        assert torch.equal(bits, want), columns


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_a_box_of_ints_corrects_lam_to_the_bits_of_a_tensor_box(dtype):
    """λ is corrected by Python's arithmetic for a box of ints, by a tensor's for a tensor."""
    perm = torch.tensor([1, 0])
    for lam in (0, 0.1, 1 / 3, 0.7, 1.0, -2.5, 1e39, 1e-30, float("nan")):
        for height, width in ((3, 7), (13, 11)):
            x = torch.zeros(2, 1, height, width, dtype=dtype)
            for bottom, right in ((1, 1), (2, 5), (3, 7)):
                box = (0, bottom, 0, right)
                got = m.cutmix_(x, perm, box, lam=lam)[1]
                for number in (lam, torch.tensor(float(lam), dtype=torch.float64)):
                    want = m.cutmix_(x, perm, torch.tensor(box), lam=number)[1]
                    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
                    assert got.dtype == want.dtype and got.device == want.device
