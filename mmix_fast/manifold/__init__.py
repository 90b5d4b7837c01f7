"""Manifold Mixup for any model: the ManifoldMixup class and its hooks."""

from .mixup import ManifoldMixup as ManifoldMixup
