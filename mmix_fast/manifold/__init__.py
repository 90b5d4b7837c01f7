"""Manifold Mixup of any model: the class, and what its hooks need."""

from .mixup import ManifoldMixup as ManifoldMixup
