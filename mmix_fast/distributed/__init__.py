"""The mixed cross-entropy where each process has some of the classes, by torch.distributed.

With DTensors, call :func:`mmix_fast.mixed_cross_entropy` or
:func:`mmix_fast.mixed_linear_cross_entropy`. The functions here take the tensors of this process.
"""

from .cross_entropy import mixed_cross_entropy as mixed_cross_entropy
from .linear import mixed_linear_cross_entropy as mixed_linear_cross_entropy
