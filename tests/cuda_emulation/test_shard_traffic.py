"""Bytes that a shard of the classes moves, and a loss whose gradient takes its logits' place.

In multiples of the shard's bytes, as in test_loss_traffic.py: 1NC forward, 2NC backward. Without
a dense spread, exactly what a loss of the same logits moves.
"""

import pytest
import torch

from tests.cuda_emulation.cross_entropy_checks import CALM, CLUSTERS, OPS, SEGMENTS, arguments

BF16, FLOAT, DOUBLE = torch.bfloat16, torch.float32, torch.float64
# Of tiles, of a warp a row, of a block a row; with ends that are not aligned.
CLASSES = [(64, 64, 1.01), (64, 101, 1.1), (64, 1000, 1.04), (64, 1001, 1.1), (16, 4096, 1.01)]


def moved(emulator, call, *tensors):
    """What the call returns, and the bytes it moves of each tensor over the tensor's, and of all
    other memory."""
    emulator.count_traffic(True)
    result = call()
    counted = emulator.traffic()
    own = {t.data_ptr(): t for t in (*tensors, result) if t is not None}
    bytes_ = {at: 32 * (c.loaded_sectors + c.stored_sectors) for at, c in counted.items()}
    times = [bytes_.get(at, 0) / max(1, t.numel() * t.element_size()) for at, t in own.items()]
    return result, times, sum(n for at, n in bytes_.items() if at not in own)


def labels(batch, classes):
    """Half of them are of another shard."""
    return torch.randint(0, 2 * classes, (batch,)), torch.randperm(batch)


@pytest.mark.parametrize("batch, classes, limit", CLASSES)
@pytest.mark.parametrize("dtype", [BF16, FLOAT, DOUBLE], ids=str)
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0, "z_loss": 0.1}], ids=str)
def test_a_shard_is_read_once_forward_and_backward(emulator, batch, classes, limit, dtype, options):
    z, (y, perm) = torch.randn(batch, classes).to(dtype), labels(batch, classes)
    lam = torch.tensor(0.25, dtype=DOUBLE if dtype == DOUBLE else FLOAT)
    args = arguments(
        y, perm, lam, class_offset=5, num_classes=2 * classes, reduction="sum", **options
    )
    part, (of_z, _), rest = moved(emulator, lambda: OPS.cross_entropy_part(z, *args), z)
    # Labels, partners, their labels: a few sectors a row, and nothing else.
    assert 0.99 <= of_z <= limit and rest <= max(200 * batch, z.nbytes // 50)
    alone = arguments(y % classes, perm, lam, reduction="sum", **options)
    call = lambda: OPS.cross_entropy(z, *alone, None)[1]  # noqa: E731
    of_pair, times, _ = moved(emulator, call, z)
    assert of_z == times[0]
    stats = part[:, [0, 1, 3]].contiguous()
    gradient, (of_z, of_gradient), _ = moved(
        emulator, lambda: OPS.cross_entropy_backward(lam, stats, z, *args), z
    )
    assert gradient.shape == z.shape
    assert 0.99 <= of_z <= limit and 0.99 <= of_gradient <= limit
    call = lambda: OPS.cross_entropy_backward(lam, of_pair, z, *alone)  # noqa: E731
    assert [of_z, of_gradient] == moved(emulator, call, z)[1]
    _, (both,), _ = moved(emulator, lambda: OPS.cross_entropy_backward_(lam, stats, z, *args), z)
    assert 1.98 <= both <= 2 * limit


@pytest.mark.parametrize("device", [CALM, CLUSTERS, SEGMENTS], ids=["calm", "clusters", "segments"])
@pytest.mark.parametrize("kind", ["labels", "smooth weights", "probabilities"])
def test_the_backward_of_a_long_shard_needs_no_sums(emulator, device, kind):
    """In no segment, and with no dense spread, is a logit or a target read again for the sums."""
    emulator.set_device(*device)
    batch, classes = 2, 8000
    z, (y, perm) = torch.randn(batch, classes), labels(batch, classes)
    weight, options = None, {}
    if kind == "smooth weights":
        weight, options = torch.rand(2 * classes), {"label_smoothing": 0.1}
    if kind == "probabilities":
        y = torch.rand(batch, classes)
    args = arguments(
        y, perm, torch.tensor(0.25), weight=weight, class_offset=40, num_classes=2 * classes,
        reduction="sum", **options
    )  # fmt: skip
    _, times, _ = moved(emulator, lambda: OPS.cross_entropy_part(z, *args), z, y, weight)
    assert times[0] <= 1.01
    stats = torch.rand(batch, 3)
    call = lambda: OPS.cross_entropy_backward(torch.tensor(2.0), stats, z, *args)  # noqa: E731
    _, (of_z, of_y, *of_weight, of_gradient), _ = moved(emulator, call, z, y, weight)
    assert of_z <= 1.01 and of_gradient <= 1.01
    if kind == "probabilities":
        assert of_y <= 2.02  # each one of its own row, and as the partner's
    if kind == "smooth weights":
        assert of_weight[0] <= batch / 2 * 1.02  # half of the classes, for each row


@pytest.mark.parametrize("shape", [(2, 150, 16, 16), (2, 19, 33, 33)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
def test_shards_of_maps_are_coalesced(emulator, shape, layout):
    z = torch.randn(shape).contiguous(memory_format=getattr(torch, layout))
    y = torch.randint(0, 300, (2, *shape[2:]))
    args = arguments(
        y, torch.arange(2), torch.tensor(0.25), class_offset=9, num_classes=300, reduction="sum"
    )
    limit = 1.02 if shape[2] == 16 or layout == "channels_last" else 1.3
    part, (of_z, _), _ = moved(emulator, lambda: OPS.cross_entropy_part(z, *args), z)
    assert 0.99 <= of_z <= limit
    stats = part[:, [0, 1, 3]].contiguous()
    call = lambda: OPS.cross_entropy_backward(torch.tensor(2.0), stats, z, *args)  # noqa: E731
    _, (of_z, of_gradient), _ = moved(emulator, call, z)
    assert of_z <= limit and of_gradient <= limit


@pytest.mark.parametrize("batch, classes, limit", CLASSES)
@pytest.mark.parametrize("dtype", [BF16, FLOAT], ids=str)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "softcap": 5.0}], ids=str)
def test_a_loss_in_place_moves_its_logits_twice(emulator, batch, classes, limit, dtype, options):
    z, y = torch.randn(batch, classes).to(dtype), torch.randint(0, classes, (batch,))
    scales = torch.tensor([0.1, 0.1, 0.1, 0]).double()
    args = arguments(y, torch.randperm(batch), torch.tensor(0.25), scales=scales, **options)
    loss, (both, _), rest = moved(emulator, lambda: OPS.cross_entropy_(z, *args), z)
    assert loss.isfinite() and 1.98 <= both <= 2 * limit
    assert rest <= 400 * batch  # no second buffer


def test_rows_in_segments_are_read_twice_in_place(emulator):
    emulator.set_device(*SEGMENTS)
    z, y = torch.randn(2, 8000), torch.tensor([3, 7999])
    args = arguments(y, torch.tensor([1, 0]), torch.tensor(0.25))
    _, (three, _), _ = moved(emulator, lambda: OPS.cross_entropy_(z, *args), z)
    assert 2 <= three <= 3.01


@pytest.mark.parametrize("classes", [64, 1000])
def test_the_divisors_of_a_shard_are_counted_as_those_of_whole_logits(emulator, classes):
    """If all labels count, without a look at the partners."""
    z, (y, perm) = torch.randn(300, classes), labels(300, classes)
    lam = torch.tensor(0.25)
    args = arguments(y, perm, lam, class_offset=5, num_classes=2 * classes)
    _, times, _ = moved(emulator, lambda: OPS.cross_entropy_part(z, *args), z, perm)
    alone = arguments(y % classes, perm, lam)
    call = lambda: OPS.cross_entropy(z, *alone, None)[1]  # noqa: E731
    assert times[:2] == moved(emulator, call, z, perm)[1][:2]
