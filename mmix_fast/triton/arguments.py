"""Groups of arguments that the kernels take as one: Triton passes a NamedTuple field by field.

Floats stay outside: Triton reads one inside a tuple as float32. A jit function must not return a
group with a field that may be None: Triton 3.6 cannot.
"""

from typing import Any, NamedTuple

import triton.language as tl


class Pairs(NamedTuple):
    """Which samples are mixed, and how. uses: see uses_at. lam_stride is 0 for a scalar lam."""

    perm_ptr: Any
    uses_ptr: Any
    lam_ptr: Any
    lam_stride: Any
    batch: Any


class Box(NamedTuple):
    """Where cutmix_ pastes: (top, bottom, left, right) of each row, or of all if stride is 0.
    Column n of a sample is the pixel (n // y_every % height, n // x_every % width)."""

    ptr: Any
    stride: Any
    y_every: Any
    height: Any
    x_every: Any
    width: Any


class Matrix(NamedTuple):
    """A tensor (outer, row, class) with strides: logits, their gradient, or float targets."""

    ptr: Any
    outer: Any
    row: Any
    col: Any


class Labels(NamedTuple):
    """Labels of the rows (sample, inner), and what a label's term of the loss depends on."""

    own_ptr: Any
    other_ptr: Any  # the partners' labels; None: a permutation names the partners
    weight_ptr: Any
    classes: Any  # that labels and weights are of
    inner: Any
    ignore_index: Any
    first: Any = None  # the first class of the logits, where they are a shard
    held: Any = None  # how many classes the logits have


class Options(NamedTuple):
    """What loss_kernel computes; constants of the compiler."""

    LABELS: Any  # else float targets
    SPATIAL: Any  # each sample is an outer index, and its inner dimensions are the rows
    BESIDE: Any  # the classes are not adjacent in memory; usually the rows are
    PER_SAMPLE: Any  # lam
    MEAN: Any
    SMOOTH: Any
    DENSE: Any  # the target is not constant outside its labels, so its mass must be summed
    Z_LOSS: Any
    CAPPED: Any
    FORWARD: Any
    GRADIENT: Any
    RESCALE: Any
    SHARD: Any  # the logits are those of some of the classes; a FORWARD then gives its part
    INPLACE: Any  # the gradient of a FORWARD takes the place of the logits


class BinaryOptions(NamedTuple):
    """What binary_loss_kernel computes; constants of the compiler. See Options."""

    LABELS: Any
    SPATIAL: Any
    BESIDE: Any
    SMOOTH: Any
    THRESHOLD: Any
    EVERY: Any  # loss and upstream gradient are not reduced: they have the logits' shape
    FORWARD: Any
    GRADIENT: Any
    RESCALE: Any


class Tile(NamedTuple):
    """How loss_kernel computes it; constants of the compiler.

    The VECs are the elements of an access, which divide the strides across it; ALONG divides the
    length along it. BLOCK_LABELS: the power of two that holds all rows, or 0: divisors_kernel ran.
    """

    BLOCK_ROWS: Any
    BLOCK_CLASSES: Any
    WHOLE: Any  # BLOCK_CLASSES holds all classes
    VEC: Any
    TARGET_VEC: Any
    PARTNER_VEC: Any
    ALONG: Any
    BLOCK_BATCH: Any
    BLOCK_LABELS: Any
    PARTIAL_SUMS: Any


class BinaryTile(NamedTuple):
    """How binary_loss_kernel computes it; constants of the compiler, as in Tile."""

    BLOCK_ROWS: Any
    BLOCK_CLASSES: Any
    VEC: Any
    TARGET_VEC: Any
    PARTNER_VEC: Any
    LOSS_VEC: Any
    GRAD_VEC: Any
    ALONG: Any
    BLOCK_BATCH: Any


def constants(group: type[Any], **fields: Any) -> Any:
    """A group whose fields are all constants of the compiler."""
    return group(**{name: tl.constexpr(value) for name, value in fields.items()})
