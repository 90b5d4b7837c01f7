"""The public ops. Each checks its arguments, asks dispatch for a backend, and runs it."""

from .binary_loss import mixed_binary_cross_entropy as mixed_binary_cross_entropy
from .cutmix import cutmix_ as cutmix_
from .linear_loss import mixed_linear_cross_entropy as mixed_linear_cross_entropy
from .loss import mixed_cross_entropy as mixed_cross_entropy
from .mixed_target import MixedTarget as MixedTarget
from .mixing import mix as mix
from .mixing import mix_ as mix_
from .targets import mix_batch_ as mix_batch_
from .targets import mix_targets as mix_targets
