"""Every error message; where an argument is wrong, nothing is written."""

from collections import namedtuple

import pytest
import torch

import mmix_fast as m

PERM, Y = torch.tensor([1, 2, 0]), torch.tensor([0, 1, 1])
X, Z = torch.arange(6.0).reshape(3, 2), torch.arange(6.0).reshape(3, 2)
LEAF = torch.ones(3, 2, requires_grad=True)
LAM = torch.tensor(0.3, requires_grad=True)
THREE = r"perm must be int64 of shape \(3,\)"

# (arguments, keywords, error, message), for mix and for mix_
MIX = [
    (([1.0], PERM, 0.3), {}, TypeError, "x must be a Tensor, got list"),
    ((X.int(), PERM, 0.3), {}, TypeError, r"x must be float16.*got int32 of shape \(3, 2\)"),
    ((X.cfloat(), PERM, 0.3), {}, TypeError, "x must be float16.*got complex64"),
    ((torch.tensor(1.0), PERM, 0.3), {}, ValueError, r"x must have a batch dim.*shape \(\)"),
    ((X, PERM, 0.3), {"dim": 2}, IndexError, r"dim must be in \[-2, 1\], got 2"),
    ((X, PERM, 0.3), {"dim": -3}, IndexError, r"dim must be in \[-2, 1\], got -3"),
    ((X, PERM, 0.3), {"dim": 0.5}, TypeError, "dim must be an int, got float 0.5"),
    ((X, [1, 2, 0], 0.3), {}, TypeError, rf"{THREE}, got list"),
    ((X, PERM.int(), 0.3), {}, TypeError, rf"{THREE}, got int32 of shape \(3,\)"),
    ((X, PERM[:2].int(), 0.3), {}, TypeError, rf"{THREE}, got int32 of shape \(2,\)"),
    ((X, PERM[:2], 0.3), {}, ValueError, rf"{THREE}, got int64 of shape \(2,\)"),
    ((X, PERM[None], 0.3), {}, ValueError, rf"{THREE}, got int64 of shape \(1, 3\)"),
    ((X, PERM, 0.3), {"dim": 1}, ValueError, r"perm must be int64 of shape \(2,\)"),
    ((X, PERM.to("meta"), 0.3), {}, ValueError, "perm must be on cpu, got meta"),
    ((X, PERM * 0, 0.3), {}, ValueError, r"perm must be a permutation of 0..2, got \[0, 0, 0\]"),
    ((X, PERM + 1, 0.3), {}, ValueError, r"perm must be a permutation of 0..2, got \[2, 3, 1\]"),
    ((X, PERM - 1, 0.3), {}, ValueError, r"perm must be a permutation of 0..2, got \[0, 1, -1\]"),
    ((X, PERM, "a"), {}, TypeError, "lam must be a float or a floating tensor, got str 'a'"),
    ((X, PERM, None), {}, TypeError, "lam must be a float or a floating tensor, got NoneType"),
    ((X, PERM, torch.tensor(1)), {}, TypeError, "lam must be a float or a floating.*got int64"),
    ((X, PERM, torch.rand(2)), {}, ValueError, r"lam must have shape \(\) or \(3,\).*\(2,\)"),
    ((X, PERM, torch.rand(1, 3)), {}, ValueError, r"lam must have shape \(\) or \(3,\), either"),
    ((X, PERM, [0.3] * 3), {}, TypeError, r"a floating tensor \(torch.as_tensor.*got list \[0.3"),
    ((X, PERM, torch.tensor(True)), {}, TypeError, "lam must be.*got bool of shape"),
    ((X, PERM, torch.rand(3).to("meta")), {}, ValueError, "lam must be on cpu, got meta"),
]


@pytest.mark.parametrize("inplace", [False, True], ids=["mix", "mix_"])
@pytest.mark.parametrize("args, kw, kind, message", MIX)
def test_errors_of_mix(backend, inplace, args, kw, kind, message):
    before, version = X.clone(), X._version
    with pytest.raises(kind, match=message):
        (m.mix_ if inplace else m.mix)(*args, **kw)
    assert torch.equal(X, before) and X._version == version


MIX_INPLACE = [
    (lambda: m.mix_(LEAF, PERM, 0.3), "x must not be a leaf that requires grad"),
    (lambda: m.mix_(LEAF[:, :1], PERM, 0.3), "x must not be a leaf.*nor a view of one"),
    (lambda: m.mix_(X, PERM, LAM), "lam must not require grad where x is mixed in place.*mix does"),
    (
        lambda: m.mix_(X[:1].expand(3, 2), PERM, 0.3),
        r"x must not overlap itself.*shape \(3, 2\) with strides \(0, 1\)",
    ),
]


@pytest.mark.parametrize("number", range(len(MIX_INPLACE)))
def test_errors_of_mix_in_place(backend, number):
    call, message = MIX_INPLACE[number]
    before = X.clone(), LEAF.detach().clone()
    with pytest.raises(RuntimeError, match=message):
        call()
    assert torch.equal(X, before[0]) and torch.equal(LEAF, before[1])


# (keywords that replace those of the valid call below, error, message)
TARGETS = [
    ({"num_classes": None}, ValueError, "num_classes must be given for integer targets, got None"),
    ({"num_classes": 2.0}, TypeError, "num_classes must be an int, got float 2.0"),
    ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
    (
        {"target": [0, 1, 1]},
        TypeError,
        r"target must be integer labels or floating, got list \[0, 1, 1\]$",
    ),
    (
        {"target": Y.bool()},
        TypeError,
        r"target must be integer labels or floating, got bool .*; multi-hot targets are for the "
        r"binary cross-entropy$",
    ),
    ({"target": Y[:, None]}, ValueError, r"must have shape \(3,\).*\(3, 1\); pass target.squeeze"),
    ({"target": Y[:, None].byte()}, ValueError, r"target must have shape \(3,\), got.*\(3, 1\)"),
    ({"target": torch.tensor(1)}, ValueError, r"target must have shape \(B,\)"),
    ({"target": torch.rand(3)}, ValueError, r"a float target must have shape \(B, C, ...\)"),
    ({"target": torch.rand(3, 5)}, ValueError, "num_classes must be the target's 5 classes, got 2"),
    ({"target": Y + 1}, IndexError, r"target must hold labels in \[0, 1\] or ignore_index=-100.*2"),
    ({"target": Y - 1}, IndexError, r"target must hold labels in \[0, 1\] or ignore_index.*got -1"),
    ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1.5"),
    ({"label_smoothing": "a"}, TypeError, "label_smoothing must be a float, got str 'a'"),
    ({"ignore_index": 0.5}, TypeError, "ignore_index must be an int, got float 0.5"),
    ({"dtype": torch.int64}, TypeError, "dtype must be float16.*got torch.int64"),
    ({"perm": PERM[:2]}, ValueError, rf"{THREE}, got int64 of shape \(2,\)"),
    ({"perm": PERM * 0}, ValueError, r"perm must be a permutation of 0..2, got \[0, 0, 0\]"),
    ({"lam": "a"}, TypeError, "lam must be a float or a floating tensor"),
]


@pytest.mark.parametrize("change, kind, message", TARGETS)
@pytest.mark.parametrize("op", ["mix_targets", "mix_batch_"])
def test_errors_of_targets(backend, op, change, kind, message):
    kw = {"target": Y, "perm": PERM, "lam": 0.3, "num_classes": 2, **change}
    if op == "mix_batch_":
        kw["x"] = X
    before = X.clone()
    with pytest.raises(kind, match=message):
        getattr(m, op)(**kw)
    assert torch.equal(X, before)


PROBS = torch.rand(3, 2)
LOSS = [
    ({"logits": [1.0]}, TypeError, "logits must be a Tensor, got list"),
    ({"logits": Z.long()}, TypeError, "logits must be float16.*got int64"),
    ({"logits": Z[:, 0]}, ValueError, r"logits must have shape \(B, C, ...\), got float32"),
    ({"target": Y.bool()}, TypeError, "target must be integer labels or floating, got bool"),
    ({"target": Y[:, None]}, ValueError, r"target must have shape \(3,\), got int64 of.*\(3, 1\)"),
    (
        {"target": Y.float()},
        ValueError,
        r"shape \(3, 2\), or be integer labels of shape \(3,\), got",
    ),
    ({"target": Y[:2]}, ValueError, r"target must have shape \(3,\), got int64 of shape \(2,\)"),
    ({"target": PROBS[:, :1]}, ValueError, r"target must have shape \(3, 2\), got float32"),
    ({"target": Y.to("meta")}, ValueError, "target must be on cpu, got meta"),
    ({"target": Y + 1}, IndexError, r"target must hold labels in \[0, 1\] or ignore_index=-100.*2"),
    ({"perm": None}, ValueError, "exactly one of perm and target_b must be given, got neither"),
    ({"target_b": Y}, ValueError, "exactly one of perm and target_b must be given, got both"),
    ({"perm": None, "target_b": Y - 2}, IndexError, r"target_b must hold labels.*got -2"),
    ({"perm": None, "target_b": PROBS}, TypeError, "target_b must be of target's kind"),
    ({"perm": PERM.int()}, TypeError, rf"{THREE}, got int32"),
    ({"perm": PERM * 0}, ValueError, r"perm must be a permutation of 0..2"),
    ({"weight": [1.0]}, TypeError, r"weight must be float32 of shape \(2,\), got list"),
    ({"weight": torch.ones(2).long()}, TypeError, r"weight must be float32 of.*, got int64"),
    ({"weight": torch.ones(2).half()}, TypeError, r"weight must be float32 of.*, got float16"),
    ({"weight": torch.ones(3)}, ValueError, r"weight must be float32 of shape \(2,\), got float32"),
    (
        {"logits": Z.bfloat16(), "weight": torch.ones(2).half()},
        TypeError,
        r"weight must be bfloat16 or float32 of shape \(2,\), got float16",
    ),
    ({"weight": torch.ones(2).to("meta")}, ValueError, "weight must be on cpu, got meta"),
    ({"reduction": "avg"}, ValueError, "reduction must be one of none, mean, sum, got 'avg'"),
    ({"reduction": None}, ValueError, "reduction must be one of none, mean, sum, got None"),
    ({"label_smoothing": -0.1}, ValueError, r"label_smoothing must be in \[0, 1\], got -0.1"),
    ({"ignore_index": None}, TypeError, "ignore_index must be an int, got NoneType"),
    ({"target": PROBS, "ignore_index": 0}, ValueError, "ignore_index must be negative with float"),
    ({"z_loss": "a"}, TypeError, "z_loss must be a float, got str 'a'"),
    ({"softcap": "a"}, TypeError, "softcap must be a float or None, got str 'a'"),
    ({"softcap": 0.0}, ValueError, "softcap must be greater than 0, got 0.0"),
    ({"softcap": float("nan")}, ValueError, "softcap must be greater than 0, got nan"),
    ({"lam": torch.rand(2)}, ValueError, r"lam must have shape \(\) or \(3,\)"),
]


@pytest.mark.parametrize("change, kind, message", LOSS)
def test_errors_of_the_loss(backend, change, kind, message):
    kw = {"logits": Z, "target": Y, "perm": PERM, "lam": 0.3, **change}
    with pytest.raises(kind, match=message):
        m.mixed_cross_entropy(**kw)


class Output:
    logits = Z


@pytest.mark.parametrize("op", ["mixed_cross_entropy", "accuracy"])
@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (None, "got NoneType"),
        ((Z, Z), r"got tuple \(<float32 of shape \(3, 2\)>, <float32 of shape \(3, 2\)>\)$"),
        ([[0.5] * 1000] * 1000, r"got list \[\[0.5, 0.5, 0.5, 0.5, ...\], \[.*\], ...\]$"),
        ({"logits": Z}, r"got dict .*; pass its \['logits'\]$"),
        ({"scores": Z}, r"got dict \{'scores': <float32 of shape \(3, 2\)>\}$"),
        (namedtuple("Named", "logits aux")(Z, Z), r"got Named .*; pass its .logits$"),
        (Output(), r"got Output .*; pass its .logits$"),
    ],
)
def test_logits_that_are_not_a_tensor(op, logits, message):
    with pytest.raises(TypeError, match=f"^logits must be a Tensor, {message}") as error:
        if op == "accuracy":
            m.Mix(PERM, LAM).accuracy(logits, Y)
        else:
            m.mixed_cross_entropy(logits, Y, PERM, 0.3)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_the_error_for_a_target_of_another_batch_size_or_device():
    with pytest.raises(
        ValueError, match=r"target must have x's batch size 3, got int64 of.*\(2,\)"
    ):
        m.mix_batch_(X, Y[:2], PERM, 0.3, num_classes=2)
    with pytest.raises(ValueError, match="target must be on cpu, got meta"):
        m.mix_batch_(X, Y.to("meta"), PERM, 0.3, num_classes=2)


SAMPLE = [
    ((2.5, 1.0), {}, TypeError, "batch_size must be an int, got float 2.5"),
    ((-1, 1.0), {}, ValueError, "batch_size must be at least 0, got -1"),
    ((3, "a"), {}, TypeError, "alpha must be a float, got str 'a'"),
    ((3, -1.0), {}, ValueError, "alpha must be finite and at least 0, got -1.0"),
    ((3, float("nan")), {}, ValueError, "alpha must be finite and at least 0, got nan"),
    ((3, 1.0), {"pairing": "x"}, ValueError, "pairing must be one of random.*got 'x'"),
    ((3, 1.0), {"generator": 1}, TypeError, "generator must be a torch.Generator or None"),
]


@pytest.mark.parametrize("args, kw, kind, message", SAMPLE)
def test_errors_of_sample_mix(args, kw, kind, message):
    with pytest.raises(kind, match=message):
        m.sample_mix(*args, **kw)
