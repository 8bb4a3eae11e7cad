"""Matrices bound for multiplication: programs for one token, jobs for many."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import numpy as np

from picoedge.kernels.arrays import F32, F64
from picoedge.kernels.blocks import TILE_ROWS, Weights
from picoedge.kernels.reference.activations import Operand, rounded_columns
from picoedge.kernels.reference.blas import multiply
from picoedge.kernels.reference.dequantize import band
from picoedge.kernels.reference.gemv import Kind, Piece, multiply_batch
from picoedge.kernels.reference.planes import Planes
from picoedge.kernels.reference.threads import Job, Program, Scratch
from picoedge.kernels.reference.tiling import (
    BAND_BYTES,
    PLAIN_ROWS,
    Plan,
    band_bytes,
    cut,
    deal,
    plan,
)


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

    def __init__(self, weights: Sequence[Weights]) -> None:
        self._plain: list[tuple[F32, int]] = []  # values [rows, cols], first row
        self._packed: list[tuple[Planes, int]] = []  # planes, first row
        start = 0
        for one in weights:
            if not one.count:
                continue
            if one.spec.format.bits == 32:
                firsts = range(start, start + one.total_rows, one.spec.rows)
                self._plain += zip(_values(one), firsts, strict=True)
            else:
                self._packed.append((Planes.of(one), start))
            start += one.total_rows
        self.widths = {planes.spec.format.bits for planes, _ in self._packed}
        self.all_packed = not self._plain
        self._bands = [
            (planes, where, _rows(planes, first, where))
            for planes, first in self._packed
            for where in cut(planes.count, planes.tiles, band_bytes(planes.spec), BAND_BYTES)
        ]

    def programs(self, operand: Operand, out: F32, scratch: Sequence[Scratch]) -> list[Program]:
        """For each thread what fills out [all rows] with the products of one token."""
        words = sum(planes.words.nbytes for planes, _ in self._packed)
        weights = sum(planes.weights for planes, _ in self._packed)
        how = plan(weights, words, len(scratch))
        programs = [Program() for _ in range(how.threads)]
        for i, (kind, part) in enumerate(_batches_of_rows(self._packed, how)):
            program, room = programs[i % how.threads], scratch[i % how.threads]
            product = multiply_batch(program, kind, [piece for piece, _ in part], operand, room)
            at = 0
            for piece, rows in part:
                into = rows.of(out[None])[0]
                size = piece.lie.tiles * TILE_ROWS
                from_piece = product.reshape(-1)[at : at + size].reshape(rows.shards, -1)
                program.add(np.copyto, into, from_piece[:, : into.shape[1]])
                at += size
        return programs

    def jobs(self, x: F32, out: F32) -> list[Job]:
        """Fill out [n, all rows] with the products of x [n, cols]."""
        jobs: list[Job] = [
            partial(_plain, x, values[at : at + PLAIN_ROWS],
                    out[:, first + at : first + min(at + PLAIN_ROWS, len(values))])
            for values, first in self._plain for at in range(0, len(values), PLAIN_ROWS)
        ]  # fmt: skip
        if self._bands:
            (columns,) = rounded_columns(x, 1)
            jobs += [partial(_band, *each, columns, out) for each in self._bands]
        return jobs


def _band(
    planes: Planes, where: tuple[slice, slice], rows: Rows, x: F32, out: F32, scratch: Scratch
) -> None:
    weights = band(planes, *where, scratch)
    product = scratch.take("product", (len(out), weights.shape[1]), np.float32)
    multiply(x, weights, product)
    target = rows.of(out)
    target[...] = product.reshape(*target.shape[:2], -1)[:, :, : target.shape[2]]


def _plain(x: F32, values: F32, out: F32, _: Scratch) -> None:
    multiply(x, values.T, out)


def _batches_of_rows(
    matrices: list[tuple[Planes, int]], how: Plan
) -> list[tuple[Kind, list[tuple[Piece, Rows]]]]:
    """Pieces of a projection's matrices, in batches, with where the product of each goes."""
    batches = []
    kinds = [(Kind.of(planes, by_columns=False), planes, first) for planes, first in matrices]
    for kind, same in groupby(sorted(kinds, key=lambda each: each[0]), key=lambda each: each[0]):
        pieces = [
            (Piece(planes, *where, by_columns=False), _rows(planes, first, where))
            for _, planes, first in same
            for where in cut(planes.count, planes.tiles, planes.tile_bytes, how.piece_bytes)
        ]
        sizes = [piece.lie.tiles * kind.cols * TILE_ROWS for piece, _ in pieces]
        batches += [(kind, part) for part in deal(pieces, sizes, how)]
    return batches


class Summed:
    """A matrix whose shards are stacked by columns, their products added in f64."""

    def __init__(self, weights: Weights, *, accumulate: bool = False) -> None:
        self._planes, self._accumulate = Planes.of(weights), accumulate
        self.widths = {weights.spec.format.bits}
        cuts = cut(1, self._planes.tiles, band_bytes(weights.spec), BAND_BYTES)
        self._bands = [tiles for _, tiles in cuts]

    def programs(self, operand: Operand, sums: F64, scratch: Sequence[Scratch]) -> list[Program]:
        """For each thread what fills sums [rows] with the products of one token."""
        planes, kind = self._planes, Kind.of(self._planes, by_columns=True)
        every, tile_bytes = slice(0, planes.count), planes.count * planes.tile_bytes
        how = plan(planes.weights, planes.words.nbytes, len(scratch))
        cuts = [tiles for _, tiles in cut(1, planes.tiles, tile_bytes, how.piece_bytes)]
        sizes = [(tiles.stop - tiles.start) * kind.cols * TILE_ROWS for tiles in cuts]
        programs = [Program() for _ in range(how.threads)]
        for i, part in enumerate(deal(cuts, sizes, how)):
            program, room = programs[i % how.threads], scratch[i % how.threads]
            pieces = [Piece(planes, every, tiles, by_columns=True) for tiles in part]
            product = multiply_batch(program, kind, pieces, operand, room)
            into = sums[part[0].start * TILE_ROWS : part[-1].stop * TILE_ROWS]
            from_shards = product.reshape(planes.count, -1)[:, : len(into)]
            if not self._accumulate:
                program.add(np.add.reduce, from_shards, 0, np.float64, into)
                continue
            for partial_sums in from_shards:  # one by one: the order of a whole run's reduction
                program.add(np.add, into, partial_sums, into)
        return programs

    def jobs(self, x: F32, sums: F64) -> list[Job]:
        """Fill sums [n, rows] with the products of x [n, all cols]."""
        columns = rounded_columns(x, self._planes.count)
        return [partial(self._band, tiles, columns, sums) for tiles in self._bands]

    def _band(self, tiles: slice, x: F32, sums: F64, scratch: Scratch) -> None:
        target = sums[:, tiles.start * TILE_ROWS : tiles.stop * TILE_ROWS]
        if not self._accumulate:
            target[...] = 0
        for shard, columns in enumerate(x):
            weights = band(self._planes, slice(shard, shard + 1), tiles, scratch)
            product = scratch.take("product", (len(sums), weights.shape[1]), np.float32)
            multiply(columns, weights, product)
            target += product[:, : target.shape[1]]


class PlainSummed:
    """An f32 matrix whose shards are stacked by columns, their products added in f64."""

    def __init__(self, weights: Weights, *, accumulate: bool = False) -> None:
        self._values, self._accumulate = _values(weights), accumulate

    def jobs(self, x: F32, sums: F64) -> list[Job]:
        """Fill sums [n, rows] with the products of x [n, all cols]."""
        return [
            partial(self._multiply, x, slice(at, at + PLAIN_ROWS), sums)
            for at in range(0, self._values.shape[1], PLAIN_ROWS)
        ]

    def _multiply(self, x: F32, rows: slice, sums: F64, scratch: Scratch) -> None:
        target = sums[:, rows]
        product = scratch.take("product", target.shape, np.float32)
        if not self._accumulate:
            target[...] = 0
        columns = np.split(x, len(self._values), axis=1)
        for i, values in enumerate(self._values):
            multiply(columns[i], values[rows].T, product)
            target += product


def _values(weights: Weights) -> F32:
    """An f32 matrix of every shard: [count, rows, cols]."""
    at, (rows, cols), _ = weights.spec.planes["values"]
    return np.ndarray(
        (weights.count, rows, cols), "<f4", weights.data.data, at, (weights.stride, 4 * cols, 4)
    )


def _rows(planes: Planes, first: int, where: tuple[slice, slice]) -> Rows:
    """The rows of these tiles, in a product where those of the matrix start at `first`."""
    (shards, tiles), rows = where, planes.spec.rows
    start = first + shards.start * rows + tiles.start * TILE_ROWS
    stop = first + (shards.stop - 1) * rows + min(tiles.stop * TILE_ROWS, rows)
    return Rows(start, stop, shards.stop - shards.start)
