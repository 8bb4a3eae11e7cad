"""Matrices bound for multiplication: cut into jobs for the threads, few tokens or many.

Where the cuts are depends on the matrix alone, so a result does not depend on the threads.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from picoedge.kernels.blocks import TILE_ROWS, Weights
from picoedge.kernels.numpy_activations import Activations
from picoedge.kernels.numpy_bands import band
from picoedge.kernels.numpy_blas import multiply
from picoedge.kernels.numpy_integer import Chunk
from picoedge.kernels.numpy_planes import Planes
from picoedge.kernels.numpy_team import Job, Scratch

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

FEW_TOKENS = 4  # up to here integer sums beat turning the weights into f32
CHUNK_BYTES = 1 << 17  # of packed words, so that what is made of them stays in a 1 MB cache
BAND_BYTES = 1 << 19  # of f32 weights
PLAIN_ROWS = 512  # of an f32 matrix in one job


class QuantizedRows:
    """A matrix whose shards are stacked by rows."""

    def __init__(self, weights: Weights) -> None:
        self._planes = Planes.of(weights)
        planes = self._planes
        tile_bytes = planes.blocks * 128 * planes.words.itemsize
        self._cuts = _cut(planes, tile_bytes, CHUNK_BYTES)
        self._chunks = [Chunk(planes, *cut, by_columns=False) for cut in self._cuts]
        band_bytes = planes.spec.cols * TILE_ROWS * 4
        self._bands = _cut(planes, band_bytes, BAND_BYTES)

    def jobs(self, x: Activations, out: F32) -> list[Job]:
        """Fill out [n, total_rows]."""
        if len(out) > FEW_TOKENS:
            (columns,) = x.columns(1)
            return [partial(self._many, cut, columns, out) for cut in self._bands]
        x.prepare(self._planes.spec.format.bits)
        return [
            partial(self._few, chunk, cut, x, out)
            for chunk, cut in zip(self._chunks, self._cuts, strict=True)
        ]

    def _few(
        self, chunk: Chunk, cut: tuple[slice, slice], x: Activations, out: F32, scratch: Scratch
    ) -> None:
        bench = chunk.load(scratch)
        target = self._target(cut, out)
        for token, into in enumerate(target):
            product = bench.multiply(x, token).reshape(len(into), -1)
            into[...] = product[:, : into.shape[1]]

    def _many(self, cut: tuple[slice, slice], x: F32, out: F32, scratch: Scratch) -> None:
        weights = band(self._planes, *cut, scratch)
        product = scratch.take("product", (len(out), weights.shape[1]), np.float32)
        multiply(x, weights, product)
        target = self._target(cut, out)
        target[...] = product.reshape(*target.shape[:2], -1)[:, :, : target.shape[2]]

    def _target(self, cut: tuple[slice, slice], out: F32) -> F32:
        """The part of `out` that these tiles fill: a view [n, shards, rows]."""
        shards, tiles = cut
        rows = self._planes.spec.rows
        first = shards.start * rows + tiles.start * TILE_ROWS
        last = (shards.stop - 1) * rows + min(tiles.stop * TILE_ROWS, rows)
        return out[:, first:last].reshape(len(out), shards.stop - shards.start, -1)


class QuantizedSum:
    """A matrix whose shards are stacked by columns, their products added in f64."""

    def __init__(self, weights: Weights) -> None:
        self._planes = planes = Planes.of(weights)
        tile_bytes = planes.blocks * 128 * planes.words.itemsize
        every = slice(0, planes.count)
        self._cuts = [
            tiles for _, tiles in _cut(planes, tile_bytes * planes.count, CHUNK_BYTES, whole=True)
        ]
        self._chunks = [Chunk(planes, every, tiles, by_columns=True) for tiles in self._cuts]
        band_bytes = planes.spec.cols * TILE_ROWS * 4
        self._bands = [tiles for _, tiles in _cut(planes, band_bytes, BAND_BYTES, whole=True)]

    def jobs(self, x: Activations, sums: F64) -> list[Job]:
        """Fill sums [n, rows]."""
        if len(sums) > FEW_TOKENS:
            columns = x.columns(self._planes.count)
            return [partial(self._many, tiles, columns, sums) for tiles in self._bands]
        x.prepare(self._planes.spec.format.bits)
        return [
            partial(self._few, chunk, tiles, x, sums)
            for chunk, tiles in zip(self._chunks, self._cuts, strict=True)
        ]

    def _few(
        self, chunk: Chunk, tiles: slice, x: Activations, sums: F64, scratch: Scratch
    ) -> None:
        bench = chunk.load(scratch)
        for token, into in enumerate(self._target(tiles, sums)):
            parts = bench.multiply(x, token).reshape(self._planes.count, -1)
            np.add.reduce(parts[:, : len(into)], axis=0, dtype=np.float64, out=into)

    def _many(self, tiles: slice, x: F32, sums: F64, scratch: Scratch) -> None:
        target = self._target(tiles, sums)
        for shard, columns in enumerate(x):
            weights = band(self._planes, slice(shard, shard + 1), tiles, scratch)
            product = scratch.take("product", (len(sums), weights.shape[1]), np.float32)
            multiply(columns, weights, product)
            if shard:
                target += product[:, : target.shape[1]]
            else:
                target[...] = product[:, : target.shape[1]]

    def _target(self, tiles: slice, sums: F64) -> F64:
        return sums[:, tiles.start * TILE_ROWS : tiles.stop * TILE_ROWS]


class PlainRows:
    """An f32 matrix whose shards are stacked by rows."""

    def __init__(self, weights: Weights) -> None:
        self._values = _values(weights)  # [count, rows, cols]

    def jobs(self, x: Activations, out: F32) -> list[Job]:
        """Fill out [n, total_rows]."""
        count, rows, _ = self._values.shape
        target = out.reshape(len(out), count, rows)
        return [
            partial(self._multiply, x.plain, self._values[i, at : at + PLAIN_ROWS],
                    target[:, i, at : at + PLAIN_ROWS])
            for i in range(count) for at in range(0, rows, PLAIN_ROWS)
        ]  # fmt: skip

    def _multiply(self, x: F32, values: F32, out: F32, _: Scratch) -> None:
        multiply(x, values.T, out)


class PlainSum:
    """An f32 matrix whose shards are stacked by columns, their products added in f64."""

    def __init__(self, weights: Weights) -> None:
        self._values = _values(weights)

    def jobs(self, x: Activations, sums: F64) -> list[Job]:
        """Fill sums [n, rows]."""
        return [
            partial(self._multiply, x.plain, slice(at, at + PLAIN_ROWS), sums)
            for at in range(0, self._values.shape[1], PLAIN_ROWS)
        ]

    def _multiply(self, x: F32, rows: slice, sums: F64, scratch: Scratch) -> None:
        target = sums[:, rows]
        product = scratch.take("product", target.shape, np.float32)
        target[...] = 0
        columns = np.split(x, len(self._values), axis=1)
        for i, values in enumerate(self._values):
            multiply(columns[i], values[rows].T, product)
            target += product


def rows_of(weights: Weights) -> QuantizedRows | PlainRows:
    """Bind a matrix for a projection."""
    return PlainRows(weights) if weights.spec.format.bits == 32 else QuantizedRows(weights)


def sum_of(weights: Weights) -> QuantizedSum | PlainSum:
    """Bind a matrix for a summed projection."""
    return PlainSum(weights) if weights.spec.format.bits == 32 else QuantizedSum(weights)


def _values(weights: Weights) -> F32:
    at, (rows, cols), _ = weights.spec.planes["values"]
    return np.ndarray(
        (weights.count, rows, cols), "<f4", weights.data.data, at, (weights.stride, 4 * cols, 4)
    )


def _cut(
    planes: Planes, tile_bytes: int, most: int, *, whole: bool = False
) -> list[tuple[slice, slice]]:
    """Even cuts into (shards, tiles) of at most about `most` bytes; `whole`: all shards in each.

    A cut holds several shards only if it holds all their tiles.
    """
    shard_bytes = planes.tiles * tile_bytes
    if not whole and shard_bytes <= most:
        return [(some, slice(0, planes.tiles)) for some in _even(planes.count, shard_bytes, most)]
    pieces = _even(planes.tiles, tile_bytes, most)
    if whole:
        return [(slice(0, planes.count), tiles) for tiles in pieces]
    return [(slice(i, i + 1), tiles) for i in range(planes.count) for tiles in pieces]


def _even(count: int, each: int, most: int) -> list[slice[Any, Any, Any]]:
    size = -(-count // -(-count * each // most))
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]
