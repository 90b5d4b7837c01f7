"""The kernels of the binary cross-entropy: which one runs, layouts, sizes, bad values, traffic."""

import pytest
import torch

from tests.cuda_emulation.binary_cross_entropy_checks import (
    FLOATS,
    KERNEL,
    KINDS,
    OPS,
    WAYS,
    arguments,
    check,
    close,
    make,
    truth,
)
from tests.support.cases import DTYPES, TOLERANCE

HALF, BF16, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
REDUCTIONS = ("mean", "batchmean", "sum", "none")
# Way -> (elements of a piece of float32 logits, whether labels alone have a kernel of their own).
PIECES = {
    "rows": (4, True),
    "rows_apart": (4, False),
    "rows_cut": (4, True),
    "short_rows": (4, True),
    "long_rows": (4, True),
    "unaligned": (1, False),
    "map": (4, False),
    "map_of_parts": (4, False),
    "pixels": (1, False),
    "far_classes": (1, False),
}
ODD = ("rows_cut", "short_rows")  # rows that are no multiple of a piece


@pytest.mark.parametrize("way", WAYS)
def test_the_kernel_of_a_layout(emulator, way):
    _, across, _ = WAYS[way]
    width, lean = PIECES[way]
    for kind in ("cut", "weighted", "bytes"):
        emulator.launches()
        assert check(emulator, way, kind, FLOAT, forward_only=True)
        general = kind != "cut" or not lean
        elements = 1 if general and way in ODD else width
        flags = [str(f).lower() for f in (across, elements, general)]
        (name,) = emulator.launches()
        assert f"{KERNEL}<float, {', '.join(flags)}>" in name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_losses_and_gradients(emulator, way, kind):
    dtype = DTYPES[len(way + str(kind)) % len(DTYPES)]
    assert check(emulator, way, kind, dtype, "mean", per_sample=True)
    assert check(emulator, way, kind, FLOAT, "none")


@pytest.mark.deep
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_losses_and_gradients_of_every_dtype(emulator, way, kind, dtype):
    for reduction in REDUCTIONS:
        for per_sample in (False, True):
            assert check(emulator, way, kind, dtype, reduction, per_sample)


def forward(z, target, perm, lam, **kw):
    """(loss, gradient), and the arguments after the logits."""
    args = arguments(target, perm, torch.as_tensor(lam, dtype=FLOAT), **kw)
    return OPS.binary_cross_entropy(z, *args, 1.0), args


@pytest.mark.parametrize("dtype", [BF16, FLOAT], ids=str)
def test_any_number_of_classes_at_any_address(emulator, dtype):
    """Pieces that go on into the next rows, and ends of the tensor before a whole piece."""
    for classes in (*range(1, 20), 127, 129):
        for offset in (0, 1, 8):
            z = torch.randn(9 * classes + offset).to(dtype)[offset:].view(9, classes)
            y, perm = torch.randint(0, classes, (9,)), torch.randperm(9)
            for reduction in ("sum", "none"):
                kw = {"label_smoothing": 0.1, "reduction": reduction}
                (loss, gradient), _ = forward(z, y, perm, 0.3, **kw)
                want, want_gradient = truth(z, y, perm, torch.tensor(0.3), torch.ones(()), **kw)
                assert close(loss, want, TOLERANCE[FLOAT]), (classes, offset)
                assert close(gradient, want_gradient, TOLERANCE[dtype]), (classes, offset)


@pytest.mark.parametrize("way", ["rows", "rows_cut", "unaligned", "map", "pixels"])
@pytest.mark.parametrize("kind", ["smooth", "weighted", "bytes"])
def test_a_bad_value_is_never_an_address_and_poisons_its_rows_alone(emulator, way, kind):
    (z, y, _, lam), kw = make(way, kind, FLOAT, False)
    perm = torch.arange(len(z))
    perm[0] = len(z)  # out of range
    bad = torch.zeros(z.shape, dtype=torch.bool)
    bad[0] = True
    if kind != "bytes":
        y.view(-1)[-1] = z.shape[1]
        y.view(-1)[-2] = -1
        bad.movedim(1, -1).reshape(-1, z.shape[1])  # a view only of (B, C)
        rows = torch.zeros(z.shape[:1] + z.shape[2:], dtype=torch.bool)
        rows.view(-1)[-2:] = True
        bad |= rows.unsqueeze(1)
    for coef in (lam, torch.ones(())):  # also where the partner's side is absent
        (loss, gradient), _ = forward(z, y, perm, coef, reduction="none", **kw)
        assert torch.equal(loss.isnan(), bad) and torch.equal(gradient.isnan(), bad)


def test_the_loss_has_the_same_bits_in_any_order_of_threads(emulator):
    (z, y, perm, lam), kw = make("short_rows", "smooth", FLOAT, False)
    losses = set()
    for seed in range(3):
        emulator.set_seed(seed)
        losses.add(forward(z, y, perm, lam, **kw)[0][0].item())
    assert len(losses) == 1


def moved(emulator, t, z):
    """Sectors of t that were read and written, in bytes over the bytes of z."""
    one = emulator.traffic().get(t.data_ptr())
    return 32 * (one.loaded_sectors + one.stored_sectors) / z.nbytes if one else 0.0


@pytest.mark.parametrize("dtype", [BF16, FLOAT], ids=str)
@pytest.mark.parametrize(
    "shape", [(256, 1000), (64, 1001), (2048, 10), (3, 21841), (2, 21, 16, 36)]
)
def test_labels_move_logits_once_and_gradient_once(emulator, shape, dtype):
    z, perm = torch.randn(shape).to(dtype), torch.randperm(shape[0])
    y = torch.randint(0, shape[1], shape[:1] + shape[2:])
    emulator.count_traffic(True)
    emulator.launches()
    (_, gradient), args = forward(z, y, perm, 0.3, label_smoothing=0.1)
    assert len(emulator.launches()) == 1
    assert moved(emulator, z, z) <= 1.01 and moved(emulator, gradient, z) <= 1.01
    # A sector of each for every row of every tile, and of its partner.
    assert moved(emulator, y, z) <= 0.05 + 2 * 32 / (shape[1] * dtype.itemsize)
    widths = emulator.traffic()[z.data_ptr()].loads
    wide = 3 if len(shape) > 2 and dtype == BF16 else 4  # 4 pixels
    assert widths[wide] << wide >= 0.99 * z.nbytes
    emulator.count_traffic(True)
    OPS.binary_cross_entropy_rescale_(gradient, torch.ones(()), z, *args)
    assert not emulator.traffic().keys() & {z.data_ptr(), gradient.data_ptr(), y.data_ptr()}
    OPS.binary_cross_entropy_rescale_(gradient, torch.tensor(0.5), z, *args)
    assert moved(emulator, z, z) + moved(emulator, gradient, z) <= 2.02
    emulator.count_traffic(True)
    OPS.binary_cross_entropy_backward_(torch.tensor(0.5), z, *args)
    assert moved(emulator, z, z) <= 2.02


@pytest.mark.parametrize("dtype", [BF16, FLOAT], ids=str)
@pytest.mark.parametrize("kind", [torch.uint8, *FLOATS], ids=str)
@pytest.mark.parametrize("shape", [(64, 1000), (2, 21, 16, 36)], ids=str)
def test_a_target_is_read_once_for_its_row_and_once_as_a_partner(emulator, shape, kind, dtype):
    z = torch.randn(shape).to(dtype)
    t, other = (torch.randint(0, 2, shape).to(kind) for _ in "ab")
    for lam, own, partner in ((1.0, 1, 0), (0.0, 0, 1), (0.3, 1, 1)):
        emulator.count_traffic(True)
        (_, gradient), _ = forward(z, t, None, lam, target_b=other)
        assert moved(emulator, z, z) <= 1.01 and moved(emulator, gradient, z) <= 1.01
        # Four numbers of float64 are two accesses, to the same sectors.
        most = 2.05 if kind == DOUBLE else 1.05
        for reads, tensor in ((own, t), (partner, other)):
            assert reads <= moved(emulator, tensor, tensor) <= most * reads
        widths = emulator.traffic()[(t if own else other).data_ptr()].loads
        wide = min(4, (4 * kind.itemsize).bit_length() - 1)  # four elements
        assert sum(widths) == widths[wide]
    emulator.count_traffic(True)
    forward(z, t, torch.arange(len(z)).roll(1), 0.3)
    # The 128 bytes or more that a warp reads of a partner may begin and end within a sector.
    assert 1.99 <= moved(emulator, t, t) <= 2 * most + 32 / 128


def test_losses_and_upstreams_of_elements_are_moved_once(emulator):
    z, y, perm = torch.randn(64, 1000), torch.randint(0, 1000, (64,)), torch.randperm(64)
    emulator.count_traffic(True)
    (loss, _), args = forward(z, y, perm, 0.3, reduction="none")
    assert moved(emulator, loss, z) <= 1.01
    for upstream in (torch.rand(64, 1000), torch.rand(1).expand(64, 1000)):
        emulator.count_traffic(True)
        gradient = OPS.binary_cross_entropy_backward(upstream, z, *args)
        assert moved(emulator, z, z) <= 1.01 and moved(emulator, gradient, z) <= 1.01
        assert moved(emulator, upstream, z) <= 1.01
