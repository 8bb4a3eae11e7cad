"""Matrices bound for multiplication: cut into jobs for the threads, few tokens or many.

A row's sums are in one order wherever the cuts are, so no result depends on the threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from picoedge.kernels.blocks import TILE_ROWS, Weights
from picoedge.kernels.numpy_activations import Activations
from picoedge.kernels.numpy_bands import band
from picoedge.kernels.numpy_blas import multiply
from picoedge.kernels.numpy_integer import Batch, Piece, kind_of
from picoedge.kernels.numpy_planes import Planes
from picoedge.kernels.numpy_team import Job, Scratch

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Item = TypeVar("Item")

FEW_TOKENS = 4  # up to here integer sums beat turning the weights into f32
PIECE_BYTES = 1 << 17  # of packed words: what is made of them, six times that, stays in the cache
BATCH_WEIGHTS = 1 << 20
BAND_BYTES = 1 << 19  # of f32 weights
PLAIN_ROWS = 512  # of an f32 matrix in one job


class Rows(NamedTuple):
    """Where the product of some tiles goes: `shards` runs of rows, in columns first .. last-1."""

    first: int
    last: int
    shards: int

    def of(self, out: F32) -> F32:
        """That part of out [n, ..]: a view [n, shards, rows]."""
        return out[:, self.first : self.last].reshape(len(out), self.shards, -1)


class Projection:
    """Matrices with one input; the rows of all of them, and of all their shards, are stacked."""

    def __init__(self, weights: Sequence[Weights], threads: int) -> None:
        self._plain: list[tuple[F32, int]] = []  # values [rows, cols], first row
        self._bands: list[tuple[Planes, tuple[slice, slice], Rows]] = []
        self._batches: list[tuple[Batch, list[tuple[Rows, int]]]] = []
        self.widths: set[int] = set()  # bits of the quantized matrices
        quantized: list[tuple[Planes, int]] = []
        start = 0
        for one in weights:
            if one.spec.format.bits == 32:
                self._plain += [
                    (v, start + i * one.spec.rows) for i, v in enumerate(_values(one))
                ]
            else:
                quantized.append((Planes.of(one), start))
            start += one.total_rows
        for planes, first in quantized:
            self.widths.add(planes.spec.format.bits)
            cuts = _cut(planes.count, planes.tiles, _band_bytes(planes), BAND_BYTES)
            self._bands += [(planes, cut, _rows(planes, first, cut)) for cut in cuts]
        self._batches = _batches_of_rows(quantized, threads)

    def jobs(self, x: Activations, out: F32) -> list[Job]:
        """Fill out [n, all rows]."""
        jobs: list[Job] = [
            partial(_plain, x.plain, values[at : at + PLAIN_ROWS],
                    out[:, first + at : first + min(at + PLAIN_ROWS, len(values))])
            for values, first in self._plain for at in range(0, len(values), PLAIN_ROWS)
        ]  # fmt: skip
        if len(out) > FEW_TOKENS:
            if self._bands:
                (columns,) = x.columns(1)
                jobs += [partial(_band, *each, columns, out) for each in self._bands]
            return jobs
        for bits in self.widths:
            x.prepare(bits)
        return jobs + [partial(_few, *each, x, out) for each in self._batches]


def _few(
    batch: Batch, targets: list[tuple[Rows, int]], x: Activations, out: F32, scratch: Scratch
) -> None:
    for token, product in enumerate(batch.multiply(x, scratch)):
        flat, at = product.reshape(-1), 0
        for rows, tiles in targets:
            (into,) = rows.of(out[token : token + 1])
            part = flat[at : at + tiles * TILE_ROWS].reshape(rows.shards, -1)
            into[...] = part[:, : into.shape[1]]
            at += tiles * TILE_ROWS


def _band(
    planes: Planes, cut: tuple[slice, slice], rows: Rows, x: F32, out: F32, scratch: Scratch
) -> None:
    weights = band(planes, *cut, scratch)
    product = scratch.take("product", (len(out), weights.shape[1]), np.float32)
    multiply(x, weights, product)
    target = rows.of(out)
    target[...] = product.reshape(*target.shape[:2], -1)[:, :, : target.shape[2]]


def _plain(x: F32, values: F32, out: F32, _: Scratch) -> None:
    multiply(x, values.T, out)


def _batches_of_rows(
    matrices: list[tuple[Planes, int]], threads: int
) -> list[tuple[Batch, list[tuple[Rows, int]]]]:
    """Batches of a projection's quantized matrices, each with where its pieces' products go."""
    batches = []
    kinds = [(kind_of(planes, by_columns=False), planes, first) for planes, first in matrices]
    for kind, same in groupby(sorted(kinds, key=lambda each: each[0]), key=lambda each: each[0]):
        pieces: list[tuple[Piece, Rows]] = []
        group = list(same)
        total = sum(planes.words.nbytes for _, planes, _ in group)
        most = min(PIECE_BYTES, -(-total // threads))
        for _, planes, first in group:
            for cut in _cut(planes.count, planes.tiles, _tile_bytes(planes), most):
                piece = Piece(planes, *cut, by_columns=False)
                pieces.append((piece, _rows(planes, first, cut)))
        for part in _deal(pieces, [piece.tiles * kind.weights for piece, _ in pieces], threads):
            batch = Batch(kind, [piece for piece, _ in part])
            batches.append((batch, [(rows, piece.tiles) for piece, rows in part]))
    return batches


class Summed:
    """A matrix whose shards are stacked by columns, their products added in f64."""

    def __init__(self, weights: Weights, threads: int) -> None:
        self._planes = planes = Planes.of(weights)
        self._bits = planes.spec.format.bits
        self._bands = [tiles for _, tiles in _cut(1, planes.tiles, _band_bytes(planes), BAND_BYTES)]
        kind = kind_of(planes, by_columns=True)
        most = min(PIECE_BYTES, -(-planes.words.nbytes // threads))
        cuts = [c for _, c in _cut(1, planes.tiles, planes.count * _tile_bytes(planes), most)]
        sizes = [(cut.stop - cut.start) * kind.weights for cut in cuts]
        self._batches: list[tuple[Batch, slice]] = []
        for part in _deal(cuts, sizes, threads):
            every = slice(0, planes.count)
            batch = Batch(kind, [Piece(planes, every, tiles, by_columns=True) for tiles in part])
            self._batches.append((batch, slice(part[0].start, part[-1].stop)))

    def jobs(self, x: Activations, sums: F64) -> list[Job]:
        """Fill sums [n, rows]."""
        if len(sums) > FEW_TOKENS:
            columns = x.columns(self._planes.count)
            return [partial(self._many, tiles, columns, sums) for tiles in self._bands]
        x.prepare(self._bits)
        return [partial(self._few, *each, x, sums) for each in self._batches]

    def _few(
        self, batch: Batch, tiles: slice, x: Activations, sums: F64, scratch: Scratch
    ) -> None:
        target = sums[:, tiles.start * TILE_ROWS : tiles.stop * TILE_ROWS]
        for into, product in zip(target, batch.multiply(x, scratch), strict=True):
            parts = product.reshape(len(product), -1)[:, : len(into)]
            np.add.reduce(parts, axis=0, dtype=np.float64, out=into)

    def _many(self, tiles: slice, x: F32, sums: F64, scratch: Scratch) -> None:
        target = sums[:, tiles.start * TILE_ROWS : tiles.stop * TILE_ROWS]
        target[...] = 0
        for shard, columns in enumerate(x):
            weights = band(self._planes, slice(shard, shard + 1), tiles, scratch)
            product = scratch.take("product", (len(sums), weights.shape[1]), np.float32)
            multiply(columns, weights, product)
            target += product[:, : target.shape[1]]


class PlainSummed:
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


def summed(weights: Weights, threads: int) -> Summed | PlainSummed:
    """Bind a matrix for a summed projection."""
    return PlainSummed(weights) if weights.spec.format.bits == 32 else Summed(weights, threads)


def _values(weights: Weights) -> F32:
    """An f32 matrix of every shard: [count, rows, cols]."""
    at, (rows, cols), _ = weights.spec.planes["values"]
    return np.ndarray(
        (weights.count, rows, cols), "<f4", weights.data.data, at, (weights.stride, 4 * cols, 4)
    )


def _rows(planes: Planes, first: int, cut: tuple[slice, slice]) -> Rows:
    """The rows of these tiles, in a product where those of the matrix start at `first`."""
    (shards, tiles), rows = cut, planes.spec.rows
    start = first + shards.start * rows + tiles.start * TILE_ROWS
    stop = first + (shards.stop - 1) * rows + min(tiles.stop * TILE_ROWS, rows)
    return Rows(start, stop, shards.stop - shards.start)


def _tile_bytes(planes: Planes) -> int:
    return planes.blocks * 128 * planes.words.itemsize


def _band_bytes(planes: Planes) -> int:
    return planes.spec.cols * TILE_ROWS * 4


def _cut(shards: int, tiles: int, tile_bytes: int, most: int) -> list[tuple[slice, slice]]:
    """Even cuts into (shards, tiles) of at most about `most` bytes.

    A cut holds several shards only if it holds all their tiles.
    """
    if tiles * tile_bytes <= most:
        return [(some, slice(0, tiles)) for some in _even(shards, tiles * tile_bytes, most)]
    pieces = _even(tiles, tile_bytes, most)
    return [(slice(i, i + 1), some) for i in range(shards) for some in pieces]


def _even(count: int, each: int, most: int) -> list[slice[Any, Any, Any]]:
    size = -(-count // -(-count * each // most))
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]


def _deal(items: Sequence[Item], sizes: Sequence[int], threads: int) -> list[list[Item]]:
    """Runs of items of about one size, as many for each thread, none far past BATCH_WEIGHTS."""
    total = sum(sizes)
    count = threads * -(-total // (threads * BATCH_WEIGHTS))
    runs: list[list[Item]] = [[] for _ in range(count)]
    done = 0
    for item, size in zip(items, sizes, strict=True):
        runs[(2 * done + size) * count // (2 * total)].append(item)
        done += size
    return [run for run in runs if run]
