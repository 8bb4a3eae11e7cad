"""How matrices are cut: into pieces that fit the cache, batches of pieces, bands for BLAS.

A row's sums are in one order wherever the cuts are, so no result depends on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from picoedge.kernels.blocks import TILE_ROWS, MatrixSpec

Item = TypeVar("Item")

BAND_BYTES = 1 << 19  # of f32 weights in a band
PLAIN_ROWS = 512  # of an f32 matrix in one job

# What is made of a piece's packed words is six times that.
_PIECE_BYTES, _BATCH_WEIGHTS = 1 << 18, 1 << 21
# Waking threads takes as long as a product of a million weights, and beside another thread each
# operation waits for the interpreter: one token is shared out only from `_SHARED` weights on,
# and then in longer operations.
_SHARED = 1 << 22
_SHARED_PIECE_BYTES, _SHARED_BATCH_WEIGHTS = 1 << 19, 1 << 22


class Plan(NamedTuple):
    """Threads for one token's product, bytes of words in a piece, weights in a batch."""

    threads: int
    piece_bytes: int
    batch_weights: int


def plan(weights: int, word_bytes: int, threads: int) -> Plan:
    """How to multiply one token with so many weights."""
    if threads == 1 or weights < _SHARED:
        return Plan(1, _PIECE_BYTES, _BATCH_WEIGHTS)
    most = min(_SHARED_PIECE_BYTES, -(-word_bytes // threads))
    return Plan(threads, most, _SHARED_BATCH_WEIGHTS)


def cut(shards: int, tiles: int, tile_bytes: int, most: int) -> list[tuple[slice, slice]]:
    """Even cuts into (shards, tiles) of at most about `most` bytes.

    A cut holds several shards only if it holds all their tiles.
    """
    if tiles * tile_bytes <= most:
        return [(some, slice(0, tiles)) for some in _even(shards, tiles * tile_bytes, most)]
    pieces = _even(tiles, tile_bytes, most)
    return [(slice(i, i + 1), some) for i in range(shards) for some in pieces]


def deal(items: Sequence[Item], sizes: Sequence[int], how: Plan) -> list[list[Item]]:
    """Runs of items of about one size, as many for each thread, none far past a batch."""
    total = sum(sizes)
    count = how.threads * -(-total // (how.threads * how.batch_weights))
    runs: list[list[Item]] = [[] for _ in range(count)]
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
