"""Causal attention over a key-value cache with NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from picoedge.kernels.api import AttentionShape

F32 = npt.NDArray[np.float32]


class NumpyCache:
    """Keys and values of one layer: each [kv_heads, n_ctx, head_dim], f32 if exact, else f16."""

    def __init__(self, n_ctx: int, shape: AttentionShape, exact: bool) -> None:
        dtype = np.float32 if exact else np.float16
        size = (shape.kv_heads, n_ctx, shape.head_dim)
        self.k: npt.NDArray[np.floating] = np.zeros(size, dtype)
        self.v: npt.NDArray[np.floating] = np.zeros(size, dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.k.nbytes + self.v.nbytes


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """x / sqrt(mean(x^2) + eps) * weight along the last axis; the mean is summed in f64."""
    mean = np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True)
    return x * (1.0 / np.sqrt(mean + eps)).astype(np.float32) * weight


def rotate(x: F32, cos: F32, sin: F32) -> F32:
    """Rotary embedding of x [n, heads, d] by cos, sin [n, d/2]: pairs are (i, i + d/2)."""
    a, b = np.split(x, 2, axis=-1)  # [n, heads, d/2]
    c, s = cos[:, None], sin[:, None]  # [n, 1, d/2]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


@dataclass(frozen=True, eq=False)
class BoundAttend:
    """See `Kernels.attend`."""

    qkv: F32
    shape: AttentionShape
    rope: tuple[F32, F32]
    norms: tuple[F32, F32] | None
    eps: float
    cache: NumpyCache
    out: F32

    def __call__(self, n: int, position: int) -> None:
        shape, end = self.shape, position + n
        q, k, v = self._heads(n, position)
        self.cache.k[:, position:end] = k.transpose(1, 0, 2)
        self.cache.v[:, position:end] = v.transpose(1, 0, 2)
        start = max(0, position + 1 - shape.window) if shape.window else 0
        keys = self.cache.k[:, start:end].astype(np.float32)  # [kv, keys, d]
        values = self.cache.v[:, start:end].astype(np.float32)
        group = shape.q_heads // shape.kv_heads
        q = q.reshape(n, shape.kv_heads, group, shape.head_dim).transpose(1, 2, 0, 3)
        scores = q @ keys[:, None].transpose(0, 1, 3, 2) * np.float32(shape.scale)
        scores[..., ~self._seen(n, position, start)] = -np.inf  # [kv, group, n, keys]
        scores -= scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores)
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = weights @ values[:, None]  # [kv, group, n, d]
        self.out[:n] = mixed.transpose(2, 0, 1, 3).reshape(n, -1)

    def _heads(self, n: int, position: int) -> tuple[F32, F32, F32]:
        """q, k (normed and rotated) and v of the tokens: [n, heads, d]."""
        shape, d = self.shape, self.shape.head_dim
        heads = self.qkv[:n].reshape(n, -1, d)
        q, k, v = np.split(heads, [shape.q_heads, shape.q_heads + shape.kv_heads], axis=1)
        if self.norms is not None:
            q = rms_norm(q, self.norms[0], self.eps)
            k = rms_norm(k, self.norms[1], self.eps)
        cos, sin = (table[position : position + n] for table in self.rope)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def _seen(self, n: int, position: int, start: int) -> npt.NDArray[np.bool_]:
        """Which keys (from `start` on) each token sees: [n, keys]."""
        at = np.arange(position, position + n)[:, None]
        key = np.arange(start, position + n)[None, :]
        seen = key <= at
        return seen & (key > at - self.shape.window) if self.shape.window else seen
