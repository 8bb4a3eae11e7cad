"""Matrix products by BLAS, cut so that each stays on the thread that asked for it.

OpenBLAS deals a product of more than 2^18 multiplications out to threads of its own, on all
cores, which wait for each other spinning: beside threads of ours, or of anybody else, a product
then takes twenty times as long. NumPy's stacked products call BLAS once for each piece, at no
loss of speed (110 of 110 GFLOP/s on one AVX-512 core).
"""

from __future__ import annotations

import numpy as np

from picoedge.kernels.arrays import F32

MOST = 1 << 18  # multiplications in a piece
_INNER = 1 << 10  # columns of `a` in a piece
_WIDTH = 32  # columns of `b` in a piece


def multiply(a: F32, b: F32, out: F32) -> None:
    """out [M, N] = a [M, K] times b [K, N], both of any strides."""
    inner = a.shape[1]
    if 1 < len(a) <= MOST // (inner * b.shape[1]):
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
    if len(a) == 1:  # a vector would go to gemv, which is dealt out much sooner
        two = np.empty((2, out.shape[1]), np.float32)
        _multiply(np.concatenate([a, a]), b, two)
        out[...] = two[:1]
        return
    (m, k), n = a.shape, b.shape[1]
    width = min(n, _WIDTH)
    height = max(2, min(m, MOST // (k * width)))
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
