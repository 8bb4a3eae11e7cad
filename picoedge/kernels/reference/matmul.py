"""Bound matrix products: `programs` for one token, `jobs` for many; and how both are split.

A row's sums are in one order wherever a matrix is split, so no result depends on the sizes here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple, TypeVar

import numpy as np

from picoedge.kernels.arrays import F32, F64
from picoedge.kernels.blocks import TILE_ROWS, MatrixSpec, Weights
from picoedge.kernels.reference.activations import Operand, rounded_columns
from picoedge.kernels.reference.gemv import BatchShape, multiply_batch
from picoedge.kernels.reference.operations import multiply
from picoedge.kernels.reference.planes import Planes, band
from picoedge.kernels.reference.threads import Job, Program, Scratch

BAND_BYTES = 1 << 19  # of f32 weights dequantized at once
F32_JOB_ROWS = 512  # rows of an f32 matrix in one job

# Bytes of packed words in a group (its scratch is six times that), weights in a batch of groups.
_GROUP_BYTES, _BATCH_WEIGHTS = 1 << 18, 1 << 21
# Waking threads takes as long as a product of a million weights, and beside another thread each
# operation waits for the interpreter lock: one token's product runs on several threads only from
# `_SHARED` weights on, and then in longer operations.
_SHARED = 1 << 22
_SHARED_GROUP_BYTES, _SHARED_BATCH_WEIGHTS = 1 << 19, 1 << 22

_T = TypeVar("_T")


class GemvPlan(NamedTuple):
    """Threads for one token's product, bytes of words in a group, weights in a batch."""

    threads: int
    group_bytes: int
    batch_weights: int


class RowRange(NamedTuple):
    """Rows of a product: first .. last-1 of its columns, an equal span of each of `shards`."""

    first: int
    last: int
    shards: int

    def of(self, out: F32) -> F32:
        """These rows of out [n, all rows]: a view [n, shards, rows]."""
        return out[:, self.first : self.last].reshape(len(out), self.shards, -1)


class Projection:
    """Matrices with one input; the rows of all of them, and of all their shards, are stacked."""

    def __init__(self, weights: Sequence[Weights]) -> None:
        self._multiply_f32: list[tuple[F32, int]] = []  # values [rows, cols], first row
        self._packed: list[tuple[Planes, int]] = []  # planes, first row
        start = 0
        for one in weights:
            if not one.count:
                continue
            if one.spec.format.bits == 32:
                firsts = range(start, start + one.total_rows, one.spec.rows)
                self._multiply_f32 += zip(one.plane("values"), firsts, strict=True)
            else:
                self._packed.append((Planes.of(one), start))
            start += one.total_rows
        self.widths = {planes.spec.format.bits for planes, _ in self._packed}
        self.all_packed = not self._multiply_f32
        self._bands = [
            (planes, where, _rows(planes, first, where))
            for planes, first in self._packed
            for where in split_tiles(
                planes.count, planes.tiles, band_bytes(planes.spec), BAND_BYTES
            )
        ]

    def programs(self, operand: Operand, out: F32, scratch: Sequence[Scratch]) -> list[Program]:
        """One program a thread; together they fill out [all rows] with one token's products."""
        words = sum(planes.words.nbytes for planes, _ in self._packed)
        weights = sum(planes.weights for planes, _ in self._packed)
        how = plan_gemv(weights, words, len(scratch))
        programs = [Program() for _ in range(how.threads)]
        for i, (shape, part) in enumerate(_row_batches(self._packed, how)):
            program, room = programs[i % how.threads], scratch[i % how.threads]
            product = multiply_batch(program, shape, [group for group, _ in part], operand, room)
            at = 0
            for group, rows in part:
                into = rows.of(out[None])[0]
                size = group.count * group.tiles * TILE_ROWS
                from_piece = product.reshape(-1)[at : at + size].reshape(rows.shards, -1)
                program.add(np.copyto, into, from_piece[:, : into.shape[1]])
                at += size
        return programs

    def jobs(self, x: F32, out: F32) -> list[Job]:
        """Jobs that fill out [n, all rows] with the products of x [n, cols]."""
        jobs: list[Job] = [
            partial(_multiply_f32, x, values[at : at + F32_JOB_ROWS],
                    out[:, first + at : first + min(at + F32_JOB_ROWS, len(values))])
            for values, first in self._multiply_f32 for at in range(0, len(values), F32_JOB_ROWS)
        ]  # fmt: skip
        if self._bands:
            (columns,) = rounded_columns(x, 1)
            jobs += [partial(_band, *each, columns, out) for each in self._bands]
        return jobs


def _band(
    planes: Planes, where: tuple[slice, slice], rows: RowRange, x: F32, out: F32, scratch: Scratch
) -> None:
    weights = band(planes, *where, scratch)
    product = scratch.take("product", (len(out), weights.shape[1]), np.float32)
    multiply(x, weights, product)
    target = rows.of(out)
    target[...] = product.reshape(*target.shape[:2], -1)[:, :, : target.shape[2]]


def _multiply_f32(x: F32, values: F32, out: F32, _: Scratch) -> None:
    multiply(x, values.T, out)


def _row_batches(
    matrices: list[tuple[Planes, int]], how: GemvPlan
) -> list[tuple[BatchShape, list[tuple[Planes, RowRange]]]]:
    """Groups of tiles of a projection's matrices, in batches, each with its rows of the product."""
    batches = []
    shapes = [
        (BatchShape.of(planes, by_columns=False), planes, first) for planes, first in matrices
    ]
    for shape, same in groupby(sorted(shapes, key=lambda each: each[0]), key=lambda each: each[0]):
        groups = [
            (planes.cut(*where, by_columns=False), _rows(planes, first, where))
            for _, planes, first in same
            for where in split_tiles(planes.count, planes.tiles, planes.tile_bytes, how.group_bytes)
        ]
        sizes = [group.count * group.tiles * shape.cols * TILE_ROWS for group, _ in groups]
        batches += [(shape, part) for part in make_batches(groups, sizes, how)]
    return batches


class Summed:
    """A matrix whose shards are stacked by columns, their products added in f64."""

    def __init__(self, weights: Weights, *, accumulate: bool = False) -> None:
        self._accumulate, self.width = accumulate, weights.spec.format.bits
        self._shards, tiles = weights.count, -(-weights.spec.rows // TILE_ROWS)
        if self.width == 32:
            self._values: F32 = weights.plane("values")
            size = F32_JOB_ROWS // TILE_ROWS
            self._bands = [slice(at, at + size) for at in range(0, tiles, size)]
        else:
            self._planes = Planes.of(weights)
            self._bands = _even(tiles, band_bytes(weights.spec), BAND_BYTES)

    def programs(self, operand: Operand, sums: F64, scratch: Sequence[Scratch]) -> list[Program]:
        """One program a thread; together they fill sums [rows] with one token's products.

        Of a quantized matrix.
        """
        planes, shape = self._planes, BatchShape.of(self._planes, by_columns=True)
        every = slice(0, planes.count)
        how = plan_gemv(planes.weights, planes.words.nbytes, len(scratch))
        cuts = _even(planes.tiles, planes.count * planes.tile_bytes, how.group_bytes)
        sizes = [(tiles.stop - tiles.start) * shape.cols * TILE_ROWS for tiles in cuts]
        programs = [Program() for _ in range(how.threads)]
        for i, part in enumerate(make_batches(cuts, sizes, how)):
            program, room = programs[i % how.threads], scratch[i % how.threads]
            groups = [planes.cut(every, tiles, by_columns=True) for tiles in part]
            product = multiply_batch(program, shape, groups, operand, room)
            into = sums[part[0].start * TILE_ROWS : part[-1].stop * TILE_ROWS]
            from_shards = product.reshape(planes.count, -1)[:, : len(into)]
            if not self._accumulate:
                program.add(np.add.reduce, from_shards, 0, np.float64, into)
                continue
            for partial_sums in from_shards:  # one by one: the order in which reduce adds
                program.add(np.add, into, partial_sums, into)
        return programs

    def jobs(self, x: F32, sums: F64) -> list[Job]:
        """Fill sums [n, rows] with the products of x [n, all cols]."""
        if self.width == 32:
            columns = np.split(x, self._shards, axis=1)
        else:
            columns = list(rounded_columns(x, self._shards))
        return [partial(self._band, tiles, columns, sums) for tiles in self._bands]

    def _band(self, tiles: slice, x: list[F32], sums: F64, scratch: Scratch) -> None:
        rows = slice(tiles.start * TILE_ROWS, tiles.stop * TILE_ROWS)
        target = sums[:, rows]
        if not self._accumulate:
            target[...] = 0
        for shard, columns in enumerate(x):
            if self.width == 32:
                weights = self._values[shard, rows].T
            else:
                weights = band(self._planes, slice(shard, shard + 1), tiles, scratch)
            product = scratch.take("product", (len(sums), weights.shape[1]), np.float32)
            multiply(columns, weights, product)
            target += product[:, : target.shape[1]]


def _rows(planes: Planes, first: int, where: tuple[slice, slice]) -> RowRange:
    """The rows of these tiles in a product in which the matrix's rows start at `first`."""
    (shards, tiles), rows = where, planes.spec.rows
    start = first + shards.start * rows + tiles.start * TILE_ROWS
    stop = first + (shards.stop - 1) * rows + min(tiles.stop * TILE_ROWS, rows)
    return RowRange(start, stop, shards.stop - shards.start)


def plan_gemv(weights: int, word_bytes: int, threads: int) -> GemvPlan:
    """How to split one token's product with `weights` weights in `word_bytes` of packed words."""
    if threads == 1 or weights < _SHARED:
        return GemvPlan(1, _GROUP_BYTES, _BATCH_WEIGHTS)
    most = min(_SHARED_GROUP_BYTES, -(-word_bytes // threads))
    return GemvPlan(threads, most, _SHARED_BATCH_WEIGHTS)


def split_tiles(shards: int, tiles: int, tile_bytes: int, most: int) -> list[tuple[slice, slice]]:
    """Split evenly into (shards, tiles) of at most about `most` bytes each.

    A split_tiles holds several shards only if it holds all their tiles.
    """
    if tiles * tile_bytes <= most:
        return [(some, slice(0, tiles)) for some in _even(shards, tiles * tile_bytes, most)]
    groups = _even(tiles, tile_bytes, most)
    return [(slice(i, i + 1), some) for i in range(shards) for some in groups]


def make_batches(items: Sequence[_T], sizes: Sequence[int], how: GemvPlan) -> list[list[_T]]:
    """Spans of items of about one size, as many for each thread, none far larger than a batch."""
    total = sum(sizes)
    count = how.threads * -(-total // (how.threads * how.batch_weights))
    runs: list[list[_T]] = [[] for _ in range(count)]
    done = 0
    for item, size in zip(items, sizes, strict=True):
        runs[(2 * done + size) * count // (2 * total)].append(item)
        done += size
    return [run for run in runs if run]


def band_bytes(spec: MatrixSpec) -> int:
    """Bytes of one tile as f32."""
    return spec.cols * TILE_ROWS * 4


def _even(count: int, each: int, most: int) -> list[slice]:
    size = -(-count // -(-count * each // most))
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]
