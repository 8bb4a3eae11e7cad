"""Attention of the NumPy backend against plain f64 arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from reference_arithmetic import EPS, close, normed, random_f32

from picoedge.kernels.api import Attend, AttentionShape, KvCache
from picoedge.kernels.arrays import F32, F64
from picoedge.kernels.reference.backend import NumpyKernels


@dataclass
class Attention:
    """A chain of attention calls and what a plain softmax over all history gives."""

    shape: AttentionShape
    normed: bool = False
    bits: int = 32
    n_ctx: int = 64

    def __post_init__(self) -> None:
        shape, d = self.shape, self.shape.head_dim
        self.width = (shape.q_heads + 2 * shape.kv_heads) * d
        angles = np.outer(np.arange(self.n_ctx), 1 / np.arange(1, d // 2 + 1))
        self.rope = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        self.norms = (random_f32(d, seed=1), random_f32(d, seed=2)) if self.normed else None
        self.history = np.zeros((self.n_ctx, self.width), np.float32)

    def bind(self, kernels: NumpyKernels, batch: int) -> None:
        self.qkv = np.zeros((batch, self.width), np.float32)
        self.out = np.zeros((batch, self.shape.q_heads * self.shape.head_dim), np.float32)
        self.cache = KvCache(self.n_ctx, self.shape, self.bits)
        self.attend = kernels.attend(
            Attend(self.qkv, self.shape, self.rope, self.norms, EPS, self.cache, self.out)
        )

    def step(self, position: int, n: int, seed: int) -> F32:
        self.qkv[:n] = random_f32(n, self.width, seed=seed)
        self.history[position : position + n] = self.qkv[:n]
        self.attend(n, position)
        return self.out[:n].copy()

    def want(self, position: int, n: int) -> F64:
        shape, d = self.shape, self.shape.head_dim
        heads = self.history[: position + n].astype(np.float64).reshape(position + n, -1, d)
        q, k, v = np.split(heads, [shape.q_heads, shape.q_heads + shape.kv_heads], axis=1)
        if self.norms is not None:
            q, k = normed(q, self.norms[0]), normed(k, self.norms[1])
        q, k = self.turned(q), self.turned(k)
        k, v = (np.repeat(x, shape.q_heads // shape.kv_heads, axis=1) for x in (k, v))
        out = np.zeros((n, shape.q_heads, d))
        for i in range(n):
            at = position + i
            first = max(0, at - shape.window + 1) if shape.window else 0
            scores = np.einsum("hd,khd->hk", q[at], k[first : at + 1]) * shape.scale
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            out[i] = np.einsum("hk,khd->hd", weights, v[first : at + 1])
        return out.reshape(n, -1)

    def turned(self, x: F64) -> F64:
        cos, sin = (table[: len(x), None].astype(np.float64) for table in self.rope)
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


HEADS = pytest.mark.parametrize(("q_heads", "kv_heads", "head_dim"), [
    (9, 3, 64), (4, 1, 256), (2, 2, 32), (6, 2, 2),
])  # fmt: skip


@HEADS
@pytest.mark.parametrize("window", [0, 1, 7])
@pytest.mark.parametrize("qk_norm", [False, True], ids=["", "qk-norm"])
@pytest.mark.parametrize(("bits", "tolerance"), [(32, 2e-6), (16, 2e-3), (8, 2e-2)])
def test_attention(
    kernels: NumpyKernels, q_heads: int, kv_heads: int, head_dim: int, window: int,
    qk_norm: bool, bits: int, tolerance: float,
) -> None:  # fmt: skip
    shape = AttentionShape(q_heads, kv_heads, head_dim, head_dim**-0.5, window)
    case = Attention(shape, qk_norm, bits)
    case.bind(kernels, 20)
    for position, n, seed in ((0, 1, 11), (1, 20, 12), (21, 1, 13), (22, 1, 14), (23, 9, 15)):
        close(case.step(position, n, seed), case.want(position, n), tolerance)


def test_cache_positions_may_be_overwritten(kernels: NumpyKernels) -> None:
    case = Attention(AttentionShape(4, 2, 16, 0.25))
    case.bind(kernels, 12)
    case.step(0, 12, 1)
    close(case.step(5, 3, 2), case.want(5, 3))
    close(case.step(8, 1, 3), case.want(8, 1))


def test_a_long_context_is_attended_piece_by_piece(kernels: NumpyKernels) -> None:
    case = Attention(AttentionShape(2, 1, 64, 0.3), n_ctx=3000)
    case.bind(kernels, 2990)
    case.step(0, 2990, 1)
    for at in (0, 1500, 2989):
        close(case.out[at : at + 1], case.want(at, 1), 1e-5)
    close(case.step(2990, 1, 2), case.want(2990, 1), 1e-5)


def test_cache_size_and_large_values() -> None:
    shape = AttentionShape(2, 1, 16, 1.0)
    backend = NumpyKernels(1)
    assert KvCache(10, shape, 32).nbytes == 2 * 16 * 16 * 4
    assert KvCache(10, shape, 16).nbytes == 2 * 16 * 16 * 2
    case = Attention(shape, bits=16)
    case.bind(backend, 1)
    case.qkv[0] = 1e6
    case.attend(1, 0)
    assert np.isfinite(case.out).all()


def test_scores_far_apart_stay_finite() -> None:
    case = Attention(AttentionShape(1, 1, 16, 100.0))
    case.bind(NumpyKernels(1), 8)
    case.step(0, 8, 4)
    close(case.out, case.want(0, 8), 1e-5)
