"""What mixed_linear_cross_entropy refuses, and the sentence it says."""

import pytest
import torch

import mmix_fast as m

X, W = torch.randn(4, 3), torch.randn(5, 3)
Y, PERM = torch.tensor([0, 4, 2, 1]), torch.tensor([1, 0, 3, 2])


def call(input=X, linear_weight=W, target=Y, perm=PERM, lam=0.3, **options):
    return m.mixed_linear_cross_entropy(input, linear_weight, target, perm, lam, **options)


@pytest.mark.parametrize(
    ("error", "words", "given"),
    [
        (TypeError, "input must be a Tensor, got list", {"input": [1.0]}),
        (TypeError, "input must be float16", {"input": torch.zeros(4, 3, dtype=torch.int64)}),
        (ValueError, r"input must have shape \(N, D\), got .*\(4, 3, 1\)", {"input": X[..., None]}),
        (
            ValueError,
            r"linear_weight must have shape \(C, 3\), got .*\(5, 2\)",
            {"linear_weight": W[:, :2]},
        ),
        (TypeError, "linear_weight must have input's dtype", {"linear_weight": W.double()}),
        (
            ValueError,
            r"linear_bias must be torch.float32 of shape \(5,\), got",
            {"linear_bias": torch.zeros(4)},
        ),
        (
            TypeError,
            r"linear_bias must be torch.float32 of shape \(5,\), got",
            {"linear_bias": torch.zeros(5).double()},
        ),
        (ValueError, "reduction must be one of mean, sum, got 'none'", {"reduction": "none"}),
        (ValueError, "chunk_size must be at least 1, got 0", {"chunk_size": 0}),
        (TypeError, "chunk_size must be an int, got float 2.5", {"chunk_size": 2.5}),
        (ValueError, r"target must have shape \(4,\), got", {"target": Y[:3]}),
        (ValueError, "exactly one of perm and target_b", {"target_b": Y}),
        (ValueError, r"perm must be int64 of shape \(4,\), got", {"perm": PERM[:3]}),
        (ValueError, "perm must be a permutation", {"perm": torch.tensor([0, 0, 1, 2])}),
        (IndexError, r"target must hold labels in \[0, 4\]", {"target": Y + 1}),
        (
            IndexError,
            r"target_b must hold labels in \[0, 4\]",
            {"perm": None, "target_b": Y - 1},
        ),
        (TypeError, r"weight must be float32 of shape \(5,\)", {"weight": torch.ones(5).double()}),
        (ValueError, "softcap must be greater than 0", {"softcap": -1.0}),
    ],
)
def test_messages(backend, error, words, given):
    with pytest.raises(error, match=words):
        call(**given)


def test_numbers_of_numpy_are_taken(backend):
    numpy = pytest.importorskip("numpy")
    want = call(chunk_size=2, label_smoothing=0.25)
    got = call(
        chunk_size=numpy.int64(2), label_smoothing=numpy.float32(0.25), lam=numpy.float64(0.3)
    )
    torch.testing.assert_close(got, want)
