"""Every op in plain PyTorch: the fallback on any device, and the executable form of the contract.

Nothing is fused, and only the final write is in place: clarity and correctness (checked in float64)
come first. The function of the same name in :mod:`mmix_fast` has already checked the arguments; its
docstring describes them. A row whose index is out of range becomes NaN instead of reading out of
bounds, since on a GPU and in compiled graphs nothing may be checked on the host.
"""

from .binary_cross_entropy import mixed_binary_cross_entropy as mixed_binary_cross_entropy
from .cross_entropy import mixed_cross_entropy as mixed_cross_entropy
from .linear_cross_entropy import mixed_linear_cross_entropy as mixed_linear_cross_entropy
from .mixing import cutmix_ as cutmix_
from .mixing import mix as mix
from .mixing import mix_ as mix_
from .targets import mix_batch_ as mix_batch_
from .targets import mix_targets as mix_targets
