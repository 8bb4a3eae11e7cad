"""f32 operations of the kernels: products by BLAS, norms, activations, rotary embedding.

OpenBLAS spreads a product of more than 2^18 multiplications over threads of its own, on all
cores, which wait for each other spinning: beside other busy threads, ours or another program's,
such a product takes twenty times as long. So products are split. NumPy's stacked products call
BLAS once for each part, at no loss of speed (110 of 110 GFLOP/s on one AVX-512 core).
"""

from __future__ import annotations

import math

import numpy as np

from picoedge.kernels.arrays import F32

MAX_MULTIPLIES = 1 << 18  # in one call of BLAS
_INNER = 1 << 10  # columns of `a` in one call
_WIDTH = 32  # columns of `b` in one call
_MAX_EXP = np.float32(88)  # exp of more overflows f32
_GELU_INNER = np.float32(math.sqrt(2 / math.pi))
_GELU_CUBE = np.float32(0.044715)


def multiply(a: F32, b: F32, out: F32) -> None:
    """out [M, N] = a [M, K] times b [K, N], both of any strides, on the calling thread alone."""
    inner = a.shape[1]
    if 1 < len(a) <= MAX_MULTIPLIES // (inner * b.shape[1]):
        np.matmul(a, b, out=out)
        return
    if inner <= _INNER:
        _multiply(a, b, out)
        return
    part = np.empty(out.shape, np.float32)
    _multiply(a[:, :_INNER], b[:_INNER], out)
    for at in range(_INNER, inner, _INNER):
        _multiply(a[:, at : at + _INNER], b[at : at + _INNER], part)
        np.add(out, part, out=out)


def _multiply(a: F32, b: F32, out: F32) -> None:
    if len(a) == 1:  # BLAS would take a vector to gemv, which it spreads over threads much sooner
        two = np.empty((2, out.shape[1]), np.float32)
        _multiply(np.concatenate([a, a]), b, two)
        out[...] = two[:1]
        return
    (m, k), n = a.shape, b.shape[1]
    width = min(n, _WIDTH)
    height = max(2, min(m, MAX_MULTIPLIES // (k * width)))
    rows, cols = m - m % height, n - n % width
    np.matmul(
        a[:rows].reshape(-1, 1, height, k),
        b[:, :cols].reshape(k, -1, width).transpose(1, 0, 2),
        out=out[:rows, :cols].reshape(-1, height, cols // width, width).swapaxes(1, 2),
    )
    if rows < m:
        _multiply(a[rows:], b[:, :cols], out[rows:, :cols])
    if cols < n:
        _multiply(a, b[:, cols:], out[:, cols:])


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
    np.minimum(out, _MAX_EXP, out=out)
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
