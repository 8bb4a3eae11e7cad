"""Plain f64 arithmetic that the NumPy backend is compared with."""

from __future__ import annotations

import numpy as np

from picoedge.kernels.arrays import F32, F64, Array

EPS = 1e-5


def close(got: Array, want: Array, tolerance: float = 2e-6) -> None:
    """Within `tolerance` of the largest magnitude."""
    scale = float(np.abs(want).max()) or 1.0
    np.testing.assert_allclose(got / scale, want / scale, rtol=0, atol=tolerance)


def random_f32(*shape: int, seed: int = 5) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def normed(x: Array, weight: F32) -> F64:
    wide = x.astype(np.float64)
    return wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + EPS) * weight
