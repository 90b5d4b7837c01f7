"""The schemas of the kernels' ops, the same in each torch.ops namespace.

The C++, CUDA and Triton kernels only register implementations. λ is a Tensor, never a float:
torch.compile would make a graph for each value of a float. A raw in-place op does not bump the
version counter, so these ops stay private to mmix_fast/.
"""

from __future__ import annotations

_TARGETS = "int num_classes, float label_smoothing, int ignore_index, ScalarType dtype"
# The arguments that all ops of the loss share, after the logits. csrc/loss_args.h has them as C++
# parameters, and autograd/loss.py as LossTensors and LossCall.
#
# scales: None, or what "mean" needs to know where the logits are not the whole batch: float64 (4,),
# the factors of the own terms, the partners' terms and the z-loss, and what is added to the loss
# (0, or NaN for a mean over nothing).
#
# num_classes: 0, or more classes than the logits have. Then the logits are those of the classes
# from class_offset on, a shard. Labels and weight are of all classes, float targets those of the
# logits.
_LOSS = (
    "Tensor target, Tensor? perm, Tensor? target_b, Tensor lam, Tensor? weight, Tensor? scales, "
    "int ignore_index, str reduction, float label_smoothing, float z_loss, float softcap, "
    "int class_offset, int num_classes"
)
# The same of the binary cross-entropy. Of float64 logits the arithmetic is float64, else float32.
# target: int64 labels (B, d1, ...), or uint8 or floating of the logits' shape; target_b has its
# dtype.
_BINARY_LOSS = (
    "Tensor target, Tensor? perm, Tensor? target_b, Tensor lam, Tensor? weight, "
    "Tensor? pos_weight, str reduction, float label_smoothing, float? target_threshold"
)
SCHEMAS = (
    # out[i] = lam[i]*x[i] + (1-lam[i])*x[perm[i]].
    # Adjoint: out[i] = lam[i]*x[i] + (1-lam[j])*x[j], where perm[j] = i.
    "mix(Tensor x, Tensor perm, Tensor lam, int dim, bool adjoint) -> Tensor",
    "mix_(Tensor(a!) x, Tensor perm, Tensor lam, int dim) -> ()",
    # out[i] = lam[i]*x[i] + (1-lam[i])*other[perm[i]]; perm None: other[i]. x and other share no
    # memory. An index may occur several times; all are checked on the CPU before x is written.
    "mix_other(Tensor x, Tensor other, Tensor? perm, Tensor lam, int dim) -> Tensor",
    "mix_other_(Tensor(a!) x, Tensor other, Tensor? perm, Tensor lam, int dim) -> ()",
    # The gradient of either batch: out[k] = sum of weight[i]*x[i], in this order, over the i in
    # order[begin[k]:begin[k+1]], without the terms whose weight is 0. order and begin None: i = k.
    # The values of order and begin are not checked.
    "sum_rows_(Tensor(a!) out, Tensor x, Tensor weight, Tensor? order, Tensor? begin, int dim) "
    "-> ()",
    # Inside a box (top, bottom, left, right), the same as mix_. Outside it, nothing changes. box is
    # (4,), one box for all rows, or (B, 4), one box for each row.
    "cutmix_(Tensor(a!) x, Tensor perm, Tensor box, Tensor lam) -> ()",
    # Exactly one of perm and target_b, the partners' targets, is given.
    f"mix_targets(Tensor target, Tensor? perm, Tensor lam, {_TARGETS}, Tensor? target_b=None) "
    "-> Tensor",
    # mix_ of x and mix_targets of target. On the CPU, all values are checked before x is written.
    f"mix_batch_(Tensor(a!) x, Tensor target, Tensor perm, Tensor lam, {_TARGETS}) -> Tensor",
    # Draws from key: two random numbers below 2^31, int64. alpha_tensor: 0-dim float64; a graph
    # gives alpha in it.
    "sample_mix(Tensor key, SymInt batch, bool per_sample, str pairing, float alpha, "
    "Tensor? alpha_tensor) -> (Tensor perm, Tensor lam)",
    # stats: (rows, 2), for each row the max of the logits z and log(sum(exp(z - max))). gradient:
    # the gradient of the loss times `upstream`, written in the same pass. It is empty without an
    # upstream. On a GPU it is also empty for any upstream other than 1.
    f"cross_entropy(Tensor logits, {_LOSS}, float? upstream) "
    "-> (Tensor loss, Tensor stats, Tensor gradient)",
    f"cross_entropy_backward(Tensor grad, Tensor stats, Tensor logits, {_LOSS}) -> Tensor",
    f"cross_entropy_backward_(Tensor grad, Tensor stats, Tensor(a!) logits, {_LOSS}) -> ()",
    # Corrects the gradient that cross_entropy wrote for an upstream of 1, so that it is right for
    # `grad`. Rows whose upstream gradient is exactly 1 stay as they are. The others are computed
    # again from the logits.
    "cross_entropy_rescale_(Tensor(a!) gradient, Tensor grad, Tensor stats, Tensor logits, "
    f"{_LOSS}) -> ()",
    # The loss, and in the logits' storage its gradient for an upstream of 1. Not for "none".
    f"cross_entropy_(Tensor(a!) logits, {_LOSS}) -> Tensor loss",
    # Of a shard: (rows, 4), for each row the max of its logits (0 if all are -inf), the log of
    # sum(exp(z - max)), sum(t*(z - max)) and sum(t), where t are the shard's targets times their
    # weights and scales, z-loss apart. The backward ops take as stats of a shard (rows, 3): max and
    # log of the sum over all classes, and the sum of t over all classes.
    f"cross_entropy_part(Tensor logits, {_LOSS}) -> Tensor part",
    # As cross_entropy and the ops of its gradient. No row depends on a sum over it, so there are no
    # stats. With reduction "none", loss and grad have the logits' shape, and upstream is None. grad
    # may have any strides.
    f"binary_cross_entropy(Tensor logits, {_BINARY_LOSS}, float? upstream) "
    "-> (Tensor loss, Tensor gradient)",
    f"binary_cross_entropy_backward(Tensor grad, Tensor logits, {_BINARY_LOSS}) -> Tensor",
    f"binary_cross_entropy_backward_(Tensor grad, Tensor(a!) logits, {_BINARY_LOSS}) -> ()",
    "binary_cross_entropy_rescale_(Tensor(a!) gradient, Tensor grad, Tensor logits, "
    f"{_BINARY_LOSS}) -> ()",
)
