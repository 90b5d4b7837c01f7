"""Logits of a number of classes and a dtype, in the layouts that the C++ losses tell apart."""

import torch


def rows(classes, dtype):
    return 2 * torch.randn(5, classes, dtype=torch.float64).to(dtype)


MAKERS = {
    "rows": rows,
    "many rows": lambda c, dt: torch.randn(701, c).to(dt),
    "sliced rows": lambda c, dt: torch.cat([rows(c, dt)] * 2, 1)[::2, :c],
    "columns": lambda c, dt: rows(2 * c, dt)[:, ::2],
    "rows beside": lambda c, dt: torch.randn(c, 19).to(dt).t(),
    "images": lambda c, dt: torch.randn(3, c, 7, 7).to(dt),
    "channels_last": lambda c, dt: (
        torch.randn(3, c, 7, 7).to(dt).to(memory_format=torch.channels_last)
    ),
    "cut images": lambda c, dt: torch.randn(4, c, 7, 9).to(dt)[::2, :, :, 1:-1],
}


def with_lengths(lengths):
    """name -> (what makes the logits, the numbers of classes to try)"""
    return {name: (MAKERS[name], some) for name, some in lengths.items()}
