"""Causal attention over a key-value cache with NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from picoedge.kernels.api import Attend
from picoedge.kernels.arrays import F32, Bools
from picoedge.kernels.reference import kv_cache
from picoedge.kernels.reference.operations import MAX_MULTIPLIES, multiply, rms_norm, rotate
from picoedge.kernels.reference.threads import Job, Scratch, ThreadPool

_TILE = 1 << 17  # elements of keys or values as f32 at a time
_SCORES = 1 << 18  # scores at a time, but at least one token's


@dataclass(frozen=True, eq=False)
class NumpyAttend:
    """A bound `Attend`."""

    kernels: object  # kept alive, and its threads with it
    pool: ThreadPool
    op: Attend

    def __call__(self, n: int, position: int) -> None:
        shape = self.op.shape
        heads = self.op.qkv[:n].reshape(n, -1, shape.head_dim)
        rotated = self._rotate(heads[:, : shape.q_heads + shape.kv_heads], position)
        queries, keys = rotated[:, : shape.q_heads], rotated[:, shape.q_heads :]
        values = heads[:, shape.q_heads + shape.kv_heads :]
        kv_cache.append(self.op.cache, position, keys, values)
        group = shape.q_heads // shape.kv_heads
        grouped = queries.reshape(n, shape.kv_heads, group, -1).transpose(1, 2, 0, 3)
        scaled = grouped * np.float32(shape.scale)  # [kv, group, n, d]
        jobs = self._jobs(scaled, n, position)
        if len(jobs) == 1:
            jobs[0](self.pool.scratch[0])
        else:
            self.pool.run(jobs)

    def _rotate(self, heads: F32, position: int) -> F32:
        """q and k [n, heads, d], normed and rotated."""
        if self.op.norms is not None:
            q, k = np.split(heads, [self.op.shape.q_heads], axis=1)
            q = rms_norm(q, self.op.norms[0], self.op.eps)
            heads = np.concatenate([q, rms_norm(k, self.op.norms[1], self.op.eps)], axis=1)
        cos, sin = (table[position : position + len(heads)] for table in self.op.rope)
        return rotate(heads, cos, sin)

    def _jobs(self, queries: F32, n: int, position: int) -> list[Job]:
        """One job per key-value head and span of tokens; a single job if there is little to do."""
        kv_heads, group, _, d = queries.shape
        keys = position + n
        if n == 1 and kv_heads * keys * d <= _TILE:
            return [partial(self._attend, queries, slice(0, kv_heads), 0, position)]
        span = max(1, min(n, _SCORES // (group * keys)))
        return [
            partial(self._attend, queries[i : i + 1, :, at : at + span], slice(i, i + 1), at,
                    position + at)
            for i in range(kv_heads) for at in range(0, n, span)
        ]  # fmt: skip

    def _attend(self, q: F32, heads: slice, row: int, position: int, scratch: Scratch) -> None:
        """Attend with q [kv, group, n, d] of n tokens from `position` on into out from `row` on."""
        cache, (kv, group, n, d) = self.op.cache, q.shape
        end = position + n
        start = max(0, position + 1 - self.op.shape.window) if self.op.shape.window else 0
        q = q.reshape(kv, group * n, d)
        scores = scratch.take("scores", (kv, group * n, end - start), np.float32)
        step = max(1, _TILE // (kv * d))
        for at in range(start, end, step):
            where = heads, slice(at, min(at + step, end))
            keys = kv_cache.read(cache.keys, cache.key_scales, where, scratch)
            _multiply(q, keys.swapaxes(1, 2), scores[:, :, at - start :][:, :, : keys.shape[1]])
        if n > 1:
            each = scores.reshape(kv, group, n, -1)
            np.copyto(each, np.float32(-np.inf), where=self._masked(n, position, start))
        scores -= np.maximum.reduce(scores, axis=2, keepdims=True)
        np.exp(scores, out=scores)
        mixed, part = np.empty((2, kv, group * n, d), np.float32)
        for at in range(start, end, step):
            where = heads, slice(at, min(at + step, end))
            values = kv_cache.read(cache.values, cache.value_scales, where, scratch)
            into = mixed if at == start else part
            _multiply(scores[:, :, at - start :][:, :, : values.shape[1]], values, into)
            if into is part:
                mixed += part
        mixed /= np.add.reduce(scores, axis=2, keepdims=True)
        out = self.op.out[row : row + n].reshape(n, -1, group, d)
        out[:, heads] = mixed.reshape(kv, group, n, d).transpose(2, 0, 1, 3)

    def _masked(self, n: int, position: int, start: int) -> Bools:
        """True where a token must not see a key (keys count from `start`): bool [n, keys]."""
        at = np.arange(position, position + n)[:, None]
        key = np.arange(start, position + n)[None, :]
        masked: Bools = key > at
        return masked | (key <= at - self.op.shape.window) if self.op.shape.window else masked


def _multiply(a: F32, b: F32, out: F32) -> None:
    """out [h, M, N] = a [h, M, K] times b [h, K, N]."""
    if 1 < a.shape[1] <= MAX_MULTIPLIES // (a.shape[2] * b.shape[2]):
        np.matmul(a, b, out=out)
        return
    for one, other, into in zip(a, b, out, strict=True):
        multiply(one, other, into)
