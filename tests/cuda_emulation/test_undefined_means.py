"""A mean over class weights of 0 by every kernel of the loss: NaN in rows with a label, else 0."""

import pytest
import torch

from tests.cuda_emulation.cross_entropy_checks import OPS, WAYS, loss_of, make


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_in_every_way(emulator, way, per_sample, label_smoothing):
    z, y, _, lam = make(way, "labels", torch.float32, per_sample)[0]
    perm = torch.arange(len(z))  # an ignored row is ignored twice
    device, kernel, _ = WAYS[way]
    emulator.set_device(*device)
    y = torch.where(y == -100, y, y % 2)
    weight = torch.ones(z.shape[1])
    weight[:2] = 0
    kw = {"weight": weight, "reduction": "mean", "label_smoothing": label_smoothing}
    emulator.launches()
    (loss, stats, gradient), args = loss_of(z, y, perm, lam, **kw)
    if not label_smoothing:
        assert any(f"cross_entropy_{kernel}<" in name for name in emulator.launches())
    assert loss.isnan()
    again = OPS.cross_entropy_backward(torch.tensor(2.0), stats, z, *args)
    for found in (gradient, again):
        rows = found.movedim(1, -1)
        assert rows[y != -100].isnan().all() and (rows[y == -100] == 0).all()
