"""What is done to rows of activations between products: norms, activations, rotary embedding."""

from __future__ import annotations

import math

import numpy as np

from picoedge.kernels.arrays import F32

_EXP_MOST = np.float32(88)  # exp of more overflows f32
_GELU_INNER = np.float32(math.sqrt(2 / math.pi))
_GELU_CUBE = np.float32(0.044715)


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """x / sqrt(mean(x^2) + eps) * weight along the last axis; the mean is summed in f64."""
    squares = np.einsum("...i,...i->...", x, x, dtype=np.float64)
    factors = 1.0 / np.sqrt(squares / x.shape[-1] + eps)
    out: F32 = x * factors.astype(np.float32)[..., None]
    return np.multiply(out, weight, out=out)


def norm_row(x: F32, weight: F32, eps: float, out: F32) -> None:
    """`rms_norm` of one row [H]; `out` may be x."""
    wide = x.astype(np.float64)
    factor = np.float32(1.0 / math.sqrt(float(np.vdot(wide, wide)) / len(x) + eps))
    np.multiply(x, factor, out)
    np.multiply(out, weight, out)


def gated(activation: str, gate: F32, up: F32, out: F32) -> F32:
    """out = silu(gate) * up, or gelu_tanh(gate) * up."""
    (silu if activation == "silu" else gelu_tanh)(gate, out)
    return np.multiply(out, up, out=out)


def silu(x: F32, out: F32) -> None:
    """x / (1 + exp(-x)), within 1e-36 where exp would overflow."""
    np.negative(x, out=out)
    np.minimum(out, _EXP_MOST, out=out)
    np.exp(out, out=out)
    out += 1
    np.divide(x, out, out=out)


def gelu_tanh(x: F32, out: F32) -> None:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    np.multiply(x, x, out=out)
    out *= _GELU_CUBE
    out += 1
    out *= x
    out *= _GELU_INNER
    np.tanh(out, out=out)
    out += 1
    out *= x
    out *= np.float32(0.5)


def rotate(x: F32, cos: F32, sin: F32) -> F32:
    """Rotary embedding of x [n, heads, d] by cos, sin [n, d/2]: pairs are (i, i + d/2)."""
    half = x.shape[2] // 2
    a, b = x[:, :, :half], x[:, :, half:]
    c, s = cos[:, None], sin[:, None]  # [n, 1, d/2]
    out = np.empty(x.shape, np.float32)
    np.subtract(a * c, b * s, out=out[:, :, :half])
    np.add(b * c, a * s, out=out[:, :, half:])
    return out
