"""Rotary position embedding: the angles, once per model (Su et al. 2021, arXiv 2104.09864)."""

from __future__ import annotations

import math

import numpy as np

from picoedge.config import ModelConfig, RopeScaling
from picoedge.kernels.arrays import F32, F64


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> F64:
    """Radians that each position adds to a pair of dimensions, f64 [head_dim / 2]."""
    inverse = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling.freq_factors:
        return inverse / np.asarray(scaling.freq_factors, dtype=np.float64)
    if scaling.kind == "linear":
        return inverse / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(inverse, scaling)
    return inverse


def _llama3(inverse: F64, scaling: RopeScaling) -> F64:
    """Stretch wavelengths beyond the trained context, keep short ones, a ramp between (Llama 3.1).

    f64 [head_dim / 2] -> f64 [head_dim / 2].
    """
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings * inverse / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * inverse + (1 - kept) * inverse / scaling.factor


def rope_tables(config: ModelConfig, n_ctx: int, *, windowed: bool) -> tuple[F32, F32]:
    """(cos, sin), each f32 [n_ctx, head_dim / 2], for the windowed or the other layers.

    Gemma 3's windowed layers have their own base, and no scaling.
    """
    own_base = windowed and config.architecture == "gemma3"
    theta = config.rope_local_theta if own_base else config.rope_theta
    scaling = RopeScaling() if own_base else config.rope_scaling
    angles = np.outer(np.arange(n_ctx), inverse_frequencies(config.head_dim, theta, scaling))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
