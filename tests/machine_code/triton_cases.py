"""The launches that are compiled ahead of time, by the name of their case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mmix_fast.triton import (
    binary_loss_launch,
    launch,
    loss_launch,
    other_launch,
    targets_launch,
)
from tests.support.cases import meta


def _index(*shape: int) -> torch.Tensor:
    return meta(*shape, dtype=torch.int64)


def _mix(shape: tuple[int, ...], dtype: torch.dtype, adjoint: bool) -> list[launch.Launch]:
    x = meta(*shape, dtype=dtype)
    return launch.mix(x, torch.empty_like(x), _index(shape[0]), meta(), 0, adjoint)


def _mix_inplace(shape: tuple[int, ...], dtype: torch.dtype, lam: tuple[int, ...] = ()) -> Any:
    return launch.mix_inplace(meta(*shape, dtype=dtype), _index(shape[0]), meta(*lam), 0)


def _batch(shape: tuple[int, ...], classes: int, dtype: torch.dtype) -> list[launch.Launch]:
    x, target, soft = meta(*shape, dtype=dtype), _index(shape[0]), meta(shape[0], classes)
    return targets_launch.batch(x, target, soft, _index(shape[0]), meta(), 0.1, -100)


def _cutmix(shape: tuple[int, ...], dtype: torch.dtype, box: tuple[int, ...]) -> Any:
    return launch.cutmix(meta(*shape, dtype=dtype), _index(shape[0]), _index(*box), meta(shape[0]))


def _targets(shape: tuple[int, ...], dtype: torch.dtype) -> list[launch.Launch]:
    out = meta(*shape, dtype=dtype)
    return targets_launch.targets(
        _index(shape[0], *shape[2:]), out, _index(shape[0]), meta(), 0.1, -100
    )


def _pairs(shape: tuple[int, ...], dtype: torch.dtype) -> list[launch.Launch]:
    y, out = _index(shape[0]), meta(*shape, dtype=dtype)
    return targets_launch.targets(y, out, None, meta(), 0.1, -100, _index(shape[0]))


def _other(shape: tuple[int, ...], dtype: torch.dtype, inplace: bool = True) -> Any:
    x = meta(*shape, dtype=dtype)
    out = x if inplace else torch.empty_like(x)
    return other_launch.mix_other(x, out, torch.empty_like(x), _index(shape[0]), meta(), 0)


def _sums(shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    x, order, begin = meta(*shape, dtype=dtype), _index(shape[0]), _index(shape[0] + 1)
    return other_launch.sum_rows(torch.empty_like(x), x, meta(), order, begin, 0)


def _loss(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    mode: str = "forward",
    *,
    eps: float = 0.0,
    softcap: float = 0.0,
    weighted: bool = False,
    soft: torch.dtype | None = None,
    layout: torch.memory_format = torch.contiguous_format,
    shards: int = 0,
) -> list[launch.Launch]:
    """``soft``: the dtype of float targets; None: labels. A permutation gives the partners.
    ``shards``: how many have the classes, if the logits are those of the second."""
    logits = meta(*shape, dtype=dtype).contiguous(memory_format=layout)
    rows = logits.numel() // shape[1]
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    target = _index(shape[0], *shape[2:])
    if soft is not None:
        target = meta(*shape, dtype=soft).contiguous(memory_format=layout)
    forward, inplace = mode in ("forward", "forward_", "part"), mode in ("inplace", "forward_")
    weight = meta(shape[1] * (shards or 1)) if weighted else None
    # A shard is not the whole batch, nor are the logits whose place the gradient takes at once.
    scales = meta(4, dtype=torch.float64) if shards or mode == "forward_" else None
    inputs = (target, _index(shape[0]), None, meta(dtype=acc), weight, scales, -100, "mean")
    out = logits if inplace else torch.empty_like(logits)
    numbers = {"part": 4, "forward_": 0}.get(mode, 3 if shards else 2)
    return loss_launch.loss(
        logits,
        (*inputs, eps, 0.0, softcap, shape[1] if shards else 0, shape[1] * shards),
        stats=meta(rows, numbers, dtype=acc) if numbers else None,
        losses=meta(rows, dtype=acc) if forward and not shards else None,
        out=None if mode == "part" else out,
        grad=None if forward else meta(dtype=acc),
        rescale=mode == "rescale",
    )


def _binary(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    mode: str = "forward",
    *,
    hot: torch.dtype | None = None,
    reduction: str = "mean",
    threshold: float | None = None,
    weighted: bool = False,
    eps: float = 0.0,
) -> list[launch.Launch]:
    """``hot``: the dtype of multi-hot targets; None: labels. A permutation gives the partners."""
    logits = meta(*shape, dtype=dtype)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    target = _index(shape[0], *shape[2:]) if hot is None else meta(*shape, dtype=hot)
    weights = (meta(shape[1]), meta(shape[1])) if weighted else (None, None)
    inputs = (target, _index(shape[0]), None, meta(dtype=acc), *weights, reduction, eps, threshold)
    every, forward = reduction == "none", mode == "forward"
    wide = meta(*shape, dtype=acc) if every else meta(dtype=acc)
    return binary_loss_launch.binary_loss(
        logits,
        inputs,
        forward=forward,
        losses=wide if forward and every else None,
        out=logits if mode == "inplace" else torch.empty_like(logits),
        grad=None if forward else wide,
        rescale=mode == "rescale",
    )[0]


HALF, BF16, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
BYTE = torch.uint8
# Activations of ResNets, transformers and MLPs; logits of image classifiers (10 to 21841 classes),
# segmentation and language models. A row of 1000 is a multiple of 16 bytes but not of 16 elements.
CASES: dict[str, Callable[[], list[launch.Launch]]] = {
    "mix (128,64,32,32) float32": lambda: _mix((128, 64, 32, 32), FLOAT, False),
    "mix (256,1000) bfloat16": lambda: _mix((256, 1000), BF16, False),
    "mix adjoint (256,197,768) bfloat16": lambda: _mix((256, 197, 768), BF16, True),
    "mix adjoint (64,4096) float64": lambda: _mix((64, 4096), DOUBLE, True),
    "mix (8192,1024) float16": lambda: _mix((8192, 1024), HALF, False),
    "cutmix_ (128,3,224,224) bfloat16": lambda: _cutmix((128, 3, 224, 224), BF16, (128, 4)),
    "cutmix_ (4096,3,32,32) bfloat16": lambda: _cutmix((4096, 3, 32, 32), BF16, (4096, 4)),
    "cutmix_ (256,3,224,224) uint8": lambda: _cutmix((256, 3, 224, 224), torch.uint8, (256, 4)),
    "cutmix_ (4096,3,32,32) uint8": lambda: _cutmix((4096, 3, 32, 32), torch.uint8, (4,)),
    "cutmix_ (16,512,512) int64": lambda: _cutmix((16, 512, 512), torch.int64, (4,)),
    "cutmix_ (64,3,32,32) float32": lambda: _cutmix((64, 3, 32, 32), FLOAT, (4,)),
    "mix_ (8,3,224,224) float32": lambda: _mix_inplace((8, 3, 224, 224), FLOAT),
    "mix_ (128,64,32,32) float32": lambda: _mix_inplace((128, 64, 32, 32), FLOAT),
    "mix_ (256,4096) bfloat16": lambda: _mix_inplace((256, 4096), BF16, (256,)),
    "mix_ (512,197,768) bfloat16": lambda: _mix_inplace((512, 197, 768), BF16),
    "mix_ (1024,2048) float16": lambda: _mix_inplace((1024, 2048), HALF),
    "mix_ (100,1000) float64": lambda: _mix_inplace((100, 1000), DOUBLE),
    "mix_ (4096,4096) float32": lambda: _mix_inplace((4096, 4096), FLOAT),
    "mix_ (8192,1000) bfloat16": lambda: _mix_inplace((8192, 1000), BF16),
    "mix_ other (128,64,32,32) float32": lambda: _other((128, 64, 32, 32), FLOAT),
    "mix_ other (256,1000) bfloat16": lambda: _other((256, 1000), BF16),
    "mix other (8192,1024) float16": lambda: _other((8192, 1024), HALF, inplace=False),
    "mix other (64,4096) float64": lambda: _other((64, 4096), DOUBLE, inplace=False),
    "sum_rows (128,64,32,32) float32": lambda: _sums((128, 64, 32, 32), FLOAT),
    "sum_rows (256,1000) bfloat16": lambda: _sums((256, 1000), BF16),
    "mix_targets of pairs (256,1000) float32": lambda: _pairs((256, 1000), FLOAT),
    "mix_batch_ (128,3,32,32) float32": lambda: _batch((128, 3, 32, 32), 10, FLOAT),
    "mix_batch_ (256,3,224,224) bfloat16": lambda: _batch((256, 3, 224, 224), 1000, BF16),
    "mix_targets (256,1000) float32": lambda: _targets((256, 1000), FLOAT),
    "mix_targets (8,21,512,512) float16": lambda: _targets((8, 21, 512, 512), HALF),
    "loss (128,10) float32": lambda: _loss((128, 10), FLOAT),
    "loss (256,1000) bfloat16": lambda: _loss((256, 1000), BF16),
    "loss (256,1000) bfloat16 smoothed": lambda: _loss((256, 1000), BF16, eps=0.1, weighted=True),
    "loss (256,1000) float32 soft targets": lambda: _loss((256, 1000), FLOAT, soft=FLOAT),
    "loss (256,1000) bfloat16, float soft": lambda: _loss((256, 1000), BF16, soft=FLOAT),
    "loss (256,1000) float32, bfloat16 soft": lambda: _loss((256, 1000), FLOAT, soft=BF16),
    "loss (256,1000) float16 soft, capped": lambda: _loss(
        (256, 1000), HALF, soft=HALF, eps=0.1, weighted=True, softcap=30.0
    ),
    "loss backward_ (256,1000) bfloat16, float soft": lambda: _loss(
        (256, 1000), BF16, "inplace", soft=FLOAT
    ),
    "loss (8,21,512,512) bfloat16 soft": lambda: _loss((8, 21, 512, 512), BF16, soft=BF16),
    "loss (8,24,512,512) channels_last soft": lambda: _loss(
        (8, 24, 512, 512), FLOAT, soft=FLOAT, layout=torch.channels_last
    ),
    "loss (512,21841) float32": lambda: _loss((512, 21841), FLOAT),
    "loss (512,10000) bfloat16 soft targets": lambda: _loss((512, 10000), BF16, soft=BF16),
    "loss (512,21841) float32 soft targets": lambda: _loss((512, 21841), FLOAT, soft=FLOAT),
    "loss (512,21841) float32 smoothed": lambda: _loss((512, 21841), FLOAT, eps=0.1, weighted=True),
    "loss (512,21841) bfloat16": lambda: _loss((512, 21841), BF16),
    "loss (4096,128256) bfloat16": lambda: _loss((4096, 128256), BF16),
    "loss (4096,50257) bfloat16 capped": lambda: _loss((4096, 50257), BF16, softcap=30.0),
    "loss (64,10000) float64": lambda: _loss((64, 10000), DOUBLE),
    "loss (8,21,512,512) float16": lambda: _loss((8, 21, 512, 512), HALF),
    "loss backward (256,1000) bfloat16": lambda: _loss((256, 1000), BF16, "backward"),
    "loss backward_ (512,21841) float32": lambda: _loss((512, 21841), FLOAT, "inplace"),
    "loss backward_ (4096,128256) bfloat16": lambda: _loss((4096, 128256), BF16, "inplace"),
    "loss rescale_ (256,1000) float32": lambda: _loss((256, 1000), FLOAT, "rescale"),
    "loss in place (1024,16032) bfloat16": lambda: _loss((1024, 16032), BF16, "forward_"),
    "loss in place (1024,128256) bfloat16": lambda: _loss((1024, 128256), BF16, "forward_"),
    "loss in place (256,1000) float32": lambda: _loss((256, 1000), FLOAT, "forward_"),
    "loss in place (4096,50257) bfloat16 smoothed": lambda: _loss(
        (4096, 50257), BF16, "forward_", eps=0.1, weighted=True
    ),
    "loss part (4096,16032) bfloat16": lambda: _loss((4096, 16032), BF16, "part", shards=8),
    "loss part (4096,64128) bfloat16": lambda: _loss((4096, 64128), BF16, "part", shards=2),
    "loss part (512,5000) float32 smoothed": lambda: _loss(
        (512, 5000), FLOAT, "part", shards=4, eps=0.1, weighted=True
    ),
    "loss part (512,5000) float32 soft targets": lambda: _loss(
        (512, 5000), FLOAT, "part", shards=4, soft=FLOAT
    ),
    "loss shard backward (512,20000) float32 soft targets": lambda: _loss(
        (512, 20000), FLOAT, "backward", shards=4, soft=FLOAT
    ),
    "loss shard backward_ (4096,16032) bfloat16": lambda: _loss(
        (4096, 16032), BF16, "inplace", shards=8
    ),
    "loss shard backward_ (4096,64128) bfloat16": lambda: _loss(
        (4096, 64128), BF16, "inplace", shards=2
    ),
    "loss shard backward_ (4096,64128) bfloat16 smoothed": lambda: _loss(
        (4096, 64128), BF16, "inplace", shards=2, eps=0.1, weighted=True
    ),
    "binary (256,1000) float32": lambda: _binary((256, 1000), FLOAT),
    "binary (256,1000) bfloat16": lambda: _binary((256, 1000), BF16),
    "binary (1024,21841) float32": lambda: _binary((1024, 21841), FLOAT),
    "binary (1024,21841) bfloat16 weighted": lambda: _binary((1024, 21841), BF16, weighted=True),
    "binary (256,1000) bfloat16 thresholded": lambda: _binary(
        (256, 1000), BF16, threshold=0.2, eps=0.1
    ),
    "binary (256,1000) bfloat16 bytes": lambda: _binary((256, 1000), BF16, hot=BYTE),
    "binary (256,1024) float32 bytes": lambda: _binary((256, 1024), FLOAT, hot=BYTE, eps=0.1),
    "binary (512,10000) float32 bytes thresholded": lambda: _binary(
        (512, 10000), FLOAT, hot=BYTE, threshold=0.2, eps=0.1
    ),
    "binary (512,10000) bfloat16 soft targets": lambda: _binary((512, 10000), BF16, hot=FLOAT),
    "binary (64,10000) float64": lambda: _binary((64, 10000), DOUBLE, eps=0.1),
    "binary (8,21,512,512) float16": lambda: _binary((8, 21, 512, 512), HALF),
    "binary (8,21,512,512) bfloat16 bytes": lambda: _binary((8, 21, 512, 512), BF16, hot=BYTE),
    "binary none (256,1000) bfloat16": lambda: _binary((256, 1000), BF16, reduction="none"),
    "binary backward (256,1000) bfloat16 none": lambda: _binary(
        (256, 1000), BF16, "backward", reduction="none"
    ),
    "binary backward_ (512,10000) float32 bytes": lambda: _binary(
        (512, 10000), FLOAT, "inplace", hot=BYTE
    ),
    "binary backward_ (1024,21841) bfloat16": lambda: _binary((1024, 21841), BF16, "inplace"),
    "binary rescale_ (256,1000) float32": lambda: _binary((256, 1000), FLOAT, "rescale"),
}
