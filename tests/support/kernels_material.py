"""Weights, activations and conversations that tests of the kernels compute with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from kernel_levels import Backends

from picoedge.kernels.api import (
    Attend,
    AttentionShape,
    Kernels,
    KvCache,
    Project,
    ProjectSum,
    Residual,
)
from picoedge.kernels.arrays import F16, F32, F64, Array
from picoedge.kernels.blocks import FORMATS, MatrixSpec, Quants, Weights, pack_planes

EPS = 2.0**-18  # exact in f32


def random_quants(name: str, rows: int, cols: int, superblock: int, seed: int) -> Quants:
    rng, fmt, blocks = np.random.default_rng(seed), FORMATS[name], cols // 32
    q = rng.integers(0, 2**fmt.bits, (rows, cols), dtype=np.uint8)

    def halves(columns: int) -> F16:
        return (rng.standard_normal((rows, columns)) * 0.01).astype(np.float16)

    if not fmt.superblocks:
        return Quants(q, halves(blocks), halves(blocks) if fmt.has_min else None)
    supers = halves(cols // superblock)
    if fmt.bits == 6:
        scales = rng.integers(-128, 128, (rows, 2 * blocks)).astype(np.int8)
        return Quants(q, scales, superscales=supers)
    scales, mins = rng.integers(0, 256, (2, rows, blocks), dtype=np.uint8)
    return Quants(q, scales, mins, supers, halves(cols // superblock))


def rows_of(quants: Quants, rows: slice) -> Quants:
    """The same rows, taken apart before they are packed."""
    parts = {name: part[rows] for name, part in vars(quants).items() if part is not None}
    return Quants(**parts)


def superblock_of(name: str, cols: int) -> int:
    return next(s for s in (256, 64, 32) if cols % s == 0) if FORMATS[name].superblocks else 0


def pack(name: str, shards: Sequence[Quants]) -> Weights:
    """A run of shards, each with other bytes before and behind its planes."""
    rows, cols = shards[0].q.shape
    spec = MatrixSpec(FORMATS[name], rows, cols, 64, superblock_of(name, cols))
    stride = 64 + spec.nbytes + 64
    data = np.full(stride * len(shards), 0xA5, np.uint8)
    weights = Weights(spec, data, stride, len(shards))
    for i, quants in enumerate(shards):
        shard = weights.shard(i)
        shard[64:] = 0
        pack_planes(spec, quants, shard)
    return weights


def draw_shards(name: str, rows: int, cols: int, count: int, seed: int) -> list[Quants]:
    superblock = superblock_of(name, cols)
    return [random_quants(name, rows, cols, superblock, seed + i) for i in range(count)]


def random_f32(seed: int, *shape: int) -> F32:
    """Normal numbers, with a run of zeros and one of much larger ones."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    flat = values.reshape(-1)
    flat[: flat.size // 8] = 0
    flat[flat.size // 2 : flat.size // 2 + 16] *= 100
    return values


def chunks_of(total: int, cuts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, end) of the runs between the cuts."""
    yield from pairwise([0, *sorted({cut % total for cut in cuts} - {0}), total])


def assert_close(got: Array, want: Array, tolerance: float = 2e-5) -> None:
    """Within `tolerance` of the largest magnitude."""
    scale = float(np.abs(want).max()) or 1.0
    np.testing.assert_allclose(got / scale, want / scale, rtol=0, atol=tolerance)


@dataclass(frozen=True)
class Input:
    """The residual stream of N tokens: x f32, sums f64, two norms."""

    x: F32
    sums: F64 | None
    post_norm: F32 | None
    norm: F32

    @classmethod
    def draw(cls, n: int, width: int, seed: int) -> Input:
        sums = np.random.default_rng(seed).standard_normal((n, width)) if seed % 3 else None
        post_norm = random_f32(seed + 1, width) if seed % 2 else None
        return cls(random_f32(seed, n, width), sums, post_norm, random_f32(seed + 2, width))

    def project(
        self,
        kernels: Kernels,
        weights: Sequence[Weights],
        biases: Sequence[F32 | None] | None = None,
        chunks: Sequence[tuple[int, int]] = (),
    ) -> tuple[F32, F32]:
        """out and x afterwards."""
        n = len(self.x)
        outs, xs = [], []
        for start, end in chunks or [(0, n)]:
            x = self.x[start:end].copy()
            sums = None if self.sums is None else self.sums[start:end].copy()
            out = np.full((len(x), sum(w.total_rows for w in weights)), np.nan, np.float32)
            source = Residual(x, sums, self.post_norm, self.norm, EPS)
            kernels.project(Project(source, weights, biases or [None] * len(weights), out))(len(x))
            outs.append(out)
            xs.append(x)
        return np.concatenate(outs), np.concatenate(xs)


def summed(
    kernels: Kernels,
    x: F32,
    activation: str | None,
    weights: Weights,
    chunks: Sequence[tuple[int, int]] = (),
) -> F64:
    parts = []
    for start, end in chunks or [(0, len(x))]:
        sums = np.full((end - start, weights.spec.rows), np.nan)
        op = kernels.project_sum(ProjectSum(x[start:end].copy(), activation, weights, sums))
        op(end - start)
        parts.append(sums)
    return np.concatenate(parts)


def projected_alike(
    backends: Backends,
    source: Input,
    weights: Sequence[Weights],
    biases: Sequence[F32 | None],
    cuts: Sequence[int],
) -> tuple[F32, F32]:
    """out and x of the portable build, which all levels give to the bit, also of cut tokens."""
    want = source.project(backends.portable, weights, biases)
    for kernels in backends.native:
        for chunks in ([], list(chunks_of(len(source.x), cuts))):
            got = source.project(kernels, weights, biases, chunks)
            np.testing.assert_array_equal(got[0], want[0], kernels.name)
            np.testing.assert_array_equal(got[1], want[1], kernels.name)
    return want


def summed_alike(
    backends: Backends,
    x: F32,
    activation: str | None,
    shards: Sequence[Weights],
    weights: Weights,
    cuts: Sequence[int],
) -> F64:
    """Sums of the portable build, which all levels give to the bit, also of cut tokens.

    So do the `shards` of `weights`, one by one, as boards add them.
    """
    want = summed(backends.portable, x, activation, weights)
    for kernels in backends.native:
        for chunks in ([], list(chunks_of(len(x), cuts))):
            got = summed(kernels, x, activation, weights, chunks)
            np.testing.assert_array_equal(got, want, kernels.name)
    columns = x.reshape(len(x), 2 if activation else 1, len(shards), -1)
    boards = np.zeros_like(want)
    for i, shard in enumerate(shards):
        part = np.ascontiguousarray(columns[:, :, i]).reshape(len(x), -1)
        boards += summed(backends.native[-1], part, activation, shard)
    np.testing.assert_array_equal(boards, want)
    return want


@dataclass(frozen=True)
class Conversation:
    """Positions 0 .. n-1 of one layer's queries, keys and values."""

    shape: AttentionShape
    qkv: F32
    rope: tuple[F32, F32]
    norms: tuple[F32, F32] | None
    bits: int = 16  # of the cache

    @classmethod
    def draw(cls, shape: AttentionShape, n: int, seed: int, bits: int = 16) -> Conversation:
        d, rng = shape.head_dim, np.random.default_rng(seed)
        qkv = rng.standard_normal((n, (shape.q_heads + 2 * shape.kv_heads) * d)) * 2
        angles = rng.uniform(0, 6, (n, d // 2))
        rope = (np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
        norms = (random_f32(seed, d), random_f32(seed + 1, d)) if seed % 2 else None
        return cls(shape, qkv.astype(np.float32), rope, norms, bits)

    def attend(self, kernels: Kernels, chunks: Sequence[tuple[int, int]] = ()) -> F32:
        n, outs = len(self.qkv), []
        cache = KvCache(n, self.shape, self.bits)
        buffer = np.empty_like(self.qkv)
        out = np.full((n, self.shape.q_heads * self.shape.head_dim), np.nan, np.float32)
        op = kernels.attend(Attend(buffer, self.shape, self.rope, self.norms, EPS, cache, out))
        for start, end in chunks or [(0, n)]:
            buffer[: end - start] = self.qkv[start:end]
            op(end - start, start)
            outs.append(out[: end - start].copy())
        return np.concatenate(outs)
