"""Decides where ``inplace="auto"`` may overwrite a layer's output: where nothing else reads it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.utils._device import DeviceContext

from ..tracing import transformed

# These return a new tensor that their own backward does not read, so overwriting it is safe. Exact
# types only, since a subclass may return anything. Left out, because they gave wrong gradients or
# aliased memory: activations that save their output (ReLU, sigmoid, tanh, softmax), recurrent
# layers, and Dropout and Identity, which may return their own input.
_FRESH = frozenset(
    {
        *(nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.TransformerEncoderLayer),
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm),
        *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        *(nn.GELU, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
        *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
        *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    }
)


def may_overwrite(module: nn.Module, output: object) -> bool:
    """True if a layer's output may be mixed in place. The layer has exactly one hook of ours."""
    return type(output) is Tensor and _is_fresh(module, own_hooks=1) and not _is_watched()


def _is_fresh(module: nn.Module, own_hooks: int) -> bool:
    if len(module._forward_hooks) > own_hooks:  # another hook may keep or replace the output
        return False
    if module._backward_hooks or module._backward_pre_hooks:  # they make the output a view
        return False
    if "forward" in vars(module):  # replaced on this instance by unknown code
        return False
    if type(module) is nn.Sequential and len(module):
        return _is_fresh(module[-1], own_hooks=0)
    if type(module) is nn.SiLU:
        return not module.inplace  # in place it returns its input
    return type(module) in _FRESH


def _is_watched() -> bool:
    """True if global hooks, a mode or a transform see the outputs of every module or op."""
    return bool(
        module_hooks._global_forward_hooks
        or module_hooks._global_backward_hooks
        or module_hooks._global_backward_pre_hooks
        # Selective checkpoints cache outputs in a mode, other checkpoints in saved-tensor hooks.
        or torch._C._len_torch_dispatch_stack()
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        or transformed()
        or any(
            type(torch._C._get_function_stack_at(k)) is not DeviceContext
            for k in range(torch._C._len_torch_function_stack())
        )
    )
