"""Mix.accuracy: values, and the same argument checks as the loss."""

import pytest
import torch

import mmix_fast as m

PERM = torch.tensor([1, 2, 3, 0])
LAMS = (torch.tensor(0.3), torch.tensor([0.0, 1.0, 0.3, 0.9]), torch.tensor(0.0), torch.tensor(1.0))


def by_hand(z, y, perm, lam, topk):
    """Counts one prediction after another."""
    rows = z.movedim(1, -1).reshape(len(z), -1, z.shape[1])
    labels = y.reshape(len(y), -1)
    total = 0.0
    for i in range(len(z)):
        weight = float(lam[i] if lam.ndim else lam)
        for k in range(rows.shape[1]):
            best = rows[i, k].argsort(descending=True)[:topk].tolist()
            total += weight * (int(labels[i, k]) in best)
            total += (1 - weight) * (int(labels[perm[i], k]) in best)
    return total / labels.numel()


@pytest.mark.parametrize("topk", [1, 2, 5])
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_accuracy_is_lam_weighted(shape, topk, dtype):
    y = torch.randint(0, 5, shape)
    z = torch.randn(4, 5, *shape[1:]).to(dtype)
    for lam in LAMS:
        mix = m.Mix(PERM, lam)
        got = mix.accuracy(z, y, topk=topk)
        assert got.shape == () and got.dtype == torch.float32
        assert got == pytest.approx(by_hand(z, y, PERM, lam, topk), abs=1e-6)
        probabilities = torch.nn.functional.one_hot(y, 5).movedim(-1, 1) * 0.9 + 0.02
        assert torch.equal(mix.accuracy(z, probabilities, topk=topk), got)
    assert mix.accuracy(z, y, topk=5) == 1


def test_an_ignored_label_is_never_right():
    y, z = torch.tensor([0, -100, 1, 2]), torch.eye(3)[[0, 1, 1, 2]]
    assert m.Mix(PERM, torch.tensor(1.0)).accuracy(z, y) == 0.75


def test_lam_of_any_kind():
    z, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    want = m.Mix(PERM, torch.tensor(0.25)).accuracy(z, y)
    for lam in (0.25, torch.tensor([0.25], dtype=torch.float64), torch.full((4, 1), 0.25)):
        got = m.Mix(PERM, lam).accuracy(z, y)
        assert got.dtype == torch.float32 and torch.equal(got, want)


Z, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"logits": Z.int()}, TypeError, "logits must be float16.*got int32"),
        ({"logits": Z[0]}, ValueError, r"logits must have shape \(B, C, ...\), got float32 of"),
        (
            {"logits": Z[:3]},
            ValueError,
            r"target must have shape \(3,\), got int64 of shape \(4,\)",
        ),
        ({"logits": Z[:3], "target": Y[:3]}, ValueError, r"perm must be int64 of shape \(3,\)"),
        ({"target": [0, 1, 2, 0]}, TypeError, "target must be integer labels.*got list"),
        ({"target": Y[:, None]}, ValueError, r"target must have shape \(4,\), got.*\(4, 1\)"),
        ({"target": Y[None]}, ValueError, r"target must have shape \(4,\), got.*\(1, 4\)"),
        ({"target": Y.float()}, ValueError, r"target must have shape \(4, 3\), or be integer"),
        ({"target": Z[:, :1]}, ValueError, r"target must have shape \(4, 3\), got.*\(4, 1\)"),
        ({"target": Y.to("meta")}, ValueError, "target must be on cpu, got meta"),
        ({"target": Y + 1}, IndexError, r"target must hold labels in \[0, 2\].*got 3"),
        ({"target": Y - 1}, IndexError, r"target must hold labels in \[0, 2\].*got -1"),
        ({"topk": 0}, ValueError, r"topk must be in \[1, 3\], got 0"),
        ({"topk": 4}, ValueError, r"topk must be in \[1, 3\], got 4"),
        ({"topk": (1, 5)}, TypeError, r"topk must be an int, got tuple \(1, 5\)"),
    ],
)
def test_bad_arguments(change, kind, message):
    with pytest.raises(kind, match=message):
        m.Mix(PERM, torch.tensor(0.3)).accuracy(**{"logits": Z, "target": Y, **change})


def test_compiled():
    torch._dynamo.reset()
    step = torch.compile(
        lambda z, lam: m.Mix(PERM, lam).accuracy(z, Y, topk=2), fullgraph=True, backend="aot_eager"
    )
    for lam in LAMS:
        assert torch.equal(step(Z, lam), m.Mix(PERM, lam).accuracy(Z, Y, topk=2))
