"""Small models to train: weights by name, and as a thread sees them."""

from __future__ import annotations

from bench.train_shapes import ARCHITECTURES, bound, random_weights
from bench.train_shapes import grouped_config as tiny_config

__all__ = ["ARCHITECTURES", "bound", "random_weights", "tiny_config"]
