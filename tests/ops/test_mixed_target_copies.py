"""How a MixedTarget travels: pickled, through a DataLoader, to devices and pinned memory."""

import pickle

import torch
from torch.utils.data import DataLoader, default_collate

import mmix_fast as m
from tests.ops.test_mixed_target import EPS, MIXED, PER_SAMPLE, PERM, B, C, case, every_kind


def fields_equal(a, b):
    for name, value in vars(a).items():
        other = getattr(b, name)
        same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
        assert same, name
    return True


@every_kind
def test_pickling(kind):
    mixed = case(kind, PER_SAMPLE)[0]
    assert fields_equal(mixed, pickle.loads(pickle.dumps(mixed)))


def collate(batch):
    x, y = default_collate(batch)
    return x, m.MixedTarget(y, PERM, PER_SAMPLE, num_classes=C, label_smoothing=EPS)


def test_through_a_data_loader():
    data = [(torch.full((2,), float(i)), i % C) for i in range(2 * B)]
    batches = [*DataLoader(data, batch_size=B, num_workers=1, collate_fn=collate)]
    for k, (x, mixed) in enumerate(batches):
        want = collate(data[k * B : (k + 1) * B])
        assert torch.equal(x, want[0]) and fields_equal(mixed, want[1])


def test_devices_and_pinned_memory(monkeypatch):
    copies = []
    original = torch.Tensor.to

    def to(self, device, non_blocking):
        copies.append((tuple(self.shape), torch.device(device).type, non_blocking))
        return original(self, device)

    mixed = m.MixedTarget(MIXED.target, None, PER_SAMPLE, target_b=MIXED.target, num_classes=C)
    monkeypatch.setattr(torch.Tensor, "to", to)
    there = mixed.to("meta")
    assert {there.target.device.type, there.target_b.device.type, there.lam.device.type} == {"meta"}
    assert there.num_classes == C and there.perm is None
    assert copies == [((B,), "meta", True)] * 3
    copies.clear()
    partly = m.MixedTarget(there.target, there.target, torch.tensor(0.3))
    assert partly.to("meta").lam.is_meta  # where the others were already
    copies.clear()
    mixed.to(torch.device("meta"), non_blocking=False)
    assert copies == [((B,), "meta", False)] * 3
    copies.clear()
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, non_blocking: copies.append(non_blocking)
    )
    there.to("cpu", non_blocking=True)  # the host would read values that are not there yet
    assert copies == [False] * 3
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(1) or self.clone())
    assert fields_equal(torch.utils.data._utils.pin_memory.pin_memory((mixed,))[0], mixed)
    assert len(pinned) == 3
