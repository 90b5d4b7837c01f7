"""`make demo`: the backends, the speed, a training run on real digits, two pictures."""

from __future__ import annotations

import torch

from mmix_fast import info

from . import cross_entropy, mix, plots, training


def main() -> None:
    print(info.table())
    print("\nSpeed: rival / fused (quartiles), peak bytes of the tensors allocated")
    speed = mix.main((torch.float32,), (mix.SHAPES[0], mix.SHAPES[2]), 1.0)[:-1]
    speed += cross_entropy.main((torch.float32,), cross_entropy.CASES[::2], 1.0)
    print("\nTraining: 1,000 digits of MNIST, 3 seeds")
    rows = training.main()
    plots.speedups(speed)
    plots.test_nll(rows)
    print("pictures: benchmarks/results/speedups.png, benchmarks/results/test_nll.png")
