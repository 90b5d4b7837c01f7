"""mmix_fast: Manifold Mixup (Verma et al., ICML 2019); mixing takes one pass over memory."""

from . import reference
from .dispatch import backends, use_backend
from .functional import (
    MixedTarget,
    cutmix_,
    mix,
    mix_,
    mix_batch_,
    mix_targets,
    mixed_binary_cross_entropy,
    mixed_cross_entropy,
    mixed_linear_cross_entropy,
)
from .manifold import ManifoldMixup
from .sampling import Mix, sample_mix
from .validation import set_validation

__version__ = "0.1.0"
__all__ = [
    "ManifoldMixup",
    "Mix",
    "MixedTarget",
    "backends",
    "cutmix_",
    "mix",
    "mix_",
    "mix_batch_",
    "mix_targets",
    "mixed_binary_cross_entropy",
    "mixed_cross_entropy",
    "mixed_linear_cross_entropy",
    "reference",
    "sample_mix",
    "set_validation",
    "use_backend",
]
