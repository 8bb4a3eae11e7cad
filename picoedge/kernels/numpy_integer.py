"""Products for few tokens: integer sums straight from the packed words.

The words of a few tiles at a time are shifted (see `numpy_activations`), multiplied and summed,
over shifts and then over the words of a row in a block, in scratch that stays in the cache. When
a batch of tiles has been summed its sums become f32 and are weighed by the scales, in block
order. No BLAS, no f32 copy of a quant; and few, long operations, since NumPy threads queue for
the interpreter between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from picoedge.kernels.blocks import FORMATS, Format
from picoedge.kernels.numpy_activations import Activations, Factors
from picoedge.kernels.numpy_planes import Planes, halves_to_f32
from picoedge.kernels.numpy_team import Scratch

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

_TAKEN_OFF = {4: 0, 5: 16, 6: 32, 8: -128}  # from each quant of a width, so that sums fit a lane
_NIBBLES = np.uint16(0x0F0F)
_SIGNS = np.uint32(0x80808080)
_BY_NIBBLE = np.array([4, 8, 12], np.uint16).reshape(3, 1, 1)
_BY_BYTE = np.array([8, 16, 24], np.uint32).reshape(3, 1, 1)


class Kind(NamedTuple):
    """What tiles must have in common to be multiplied in one batch.

    `blocks` and `superblocks` are of one shard, `groups` the shards that are stacked by columns:
    what a tile has in each of them makes one long row of blocks.
    """

    format: str
    groups: int
    blocks: int
    superblocks: int

    @property
    def weights(self) -> int:
        """Weights of one tile."""
        return self.groups * self.blocks * 512


class Piece:
    """Tiles of some shards. Stacked by rows they lie as [shards, tiles], else [tiles, shards]."""

    def __init__(self, planes: Planes, shards: slice, tiles: slice, *, by_columns: bool) -> None:
        planes = planes.cut(shards, tiles, by_columns=by_columns)
        self.words, self.highs = planes.words, planes.highs
        self.scales, self.supers = planes.scales, planes.supers
        self.lie: tuple[int, int] = self.words.shape[:2]
        self.tiles = self.lie[0] if by_columns else self.lie[0] * self.lie[1]


def kind_of(planes: Planes, *, by_columns: bool) -> Kind:
    """The kind of all pieces of a matrix."""
    spec = planes.spec
    superblocks = spec.cols // spec.superblock if spec.format.superblocks else 0
    return Kind(spec.format.name, planes.count if by_columns else 1, planes.blocks, superblocks)


BatchShape = tuple[int, Kind, tuple[tuple[tuple[int, int], int], ...]]
"""Tokens, kind, and of each piece how it lies and its tiles: what scratch depends on."""


class Batch:
    """Pieces of one kind that a thread multiplies in one go."""

    def __init__(self, kind: Kind, pieces: Sequence[Piece]) -> None:
        self._pieces = tuple(pieces)
        self._bits = FORMATS[kind.format].bits
        self._key = (kind, tuple((piece.lie, piece.tiles) for piece in pieces))

    def multiply(self, x: Activations, scratch: Scratch) -> Iterator[F32]:
        """For each token the products [groups, tiles, 16], valid until the next is asked for."""
        n, factors = len(x.plain), x.factors(self._bits)
        bench = scratch.once((n, *self._key), Bench)
        for piece, place in zip(self._pieces, bench.places, strict=True):
            place.load(piece)
            for token in range(n):
                place.sum(factors, token)
        bench.widen_scales()
        for token in range(n):
            yield bench.weigh(x.beside_rows, token)


class Bench:
    """Scratch for a batch: t tiles of b blocks in g groups, for n tokens.

    h is the halves of a block that are summed apart, p the parts of a scale.
    """

    def __init__(self, key: BatchShape, scratch: Scratch) -> None:
        n, kind, pieces = key
        fmt, g, t = FORMATS[kind.format], kind.groups, sum(tiles for _, tiles in pieces)
        b = g * kind.blocks
        h, lanes = 2 if fmt.bits == 6 else 1, 16 if fmt.bits == 8 else 32
        p = 2 if fmt.has_min or fmt.name == "q6k" else 1
        self._format, self._take_off = fmt, np.float32(_TAKEN_OFF[fmt.bits] - fmt.offset)
        sums = scratch.take("sums", (n, h, t * b, lanes), _word(fmt))
        self._sums = sums.reshape(n, -1).view(np.int32 if fmt.bits == 8 else np.int16)
        self._lanes = scratch.take("lanes", (h * t * b * lanes,), np.float32)
        values = scratch.take("values", (max(p, h), t, b, 16), np.float32)
        self._halves, self._mins = values[:h], values[1:]
        self._whole = self._halves.reshape(-1)
        self._scaled = values[:1] if fmt.has_min else values[:p]
        scales = scratch.take("scales", (p, t, b, 16), np.float32)
        self._values = values[:p].reshape(p, t, g, -1, 16)
        self._scales = scales.reshape(p, t, g, -1, 16)
        self._result = scratch.take("result", (g, t, 16), np.float32)
        supers = None
        if fmt.superblocks:
            s, m = g * kind.superblocks, 1 + fmt.has_min
            self._super_values = values[:p].reshape(p, t, s, -1, 16)
            self._super_scales = scales.reshape(p, t, s, -1, 16)
            self._super_sums = scratch.take("super_sums", (p, t, s, 16), np.float32)
            self._apart_sums = self._super_sums.reshape(p, t, g, -1, 16)
            supers = scratch.take("supers", (m, t, s, 16), np.float32)
            self._supers = supers.reshape(m, t, g, -1, 16)
        self.places: list[Place] = []
        start = 0
        for lie, tiles in pieces:
            stop = start + tiles
            self.places.append(Place(
                fmt, lie, sums[:, :, start * b : stop * b], scales[:, start:stop],
                None if supers is None else supers[:, start:stop], scratch,
            ))  # fmt: skip
            start = stop

    def widen_scales(self) -> None:
        """f16 to f32, once all pieces have put theirs in place."""
        if not self._format.superblocks:
            halves_to_f32(self._scales)
            return
        halves_to_f32(self._supers)
        np.negative(self._supers[1:], out=self._supers[1:])  # minimums are subtracted

    def weigh(self, beside_rows: F32, token: int) -> F32:
        """One token's sums times the scales, added over blocks: [g, t, 16]."""
        scale, total, scaled_total = beside_rows[:, token]
        self._sums_as_f32(token)
        if self._take_off:
            np.add(self._scaled, total * self._take_off, out=self._scaled)
        np.multiply(self._scaled, scale, out=self._scaled)
        if self._format.has_min:
            np.copyto(self._mins, scaled_total)
        if not self._format.superblocks:
            return np.einsum("ptgbr,ptgbr->gtr", self._values, self._scales, out=self._result)
        np.einsum(
            "ptsbr,ptsbr->ptsr", self._super_values, self._super_scales, out=self._super_sums
        )
        return np.einsum("ptgsr,ptgsr->gtr", self._apart_sums, self._supers, out=self._result)

    def _sums_as_f32(self, token: int) -> None:
        if self._format.bits == 8:
            np.copyto(self._whole, self._sums[token])
            return
        np.copyto(self._lanes, self._sums[token])
        np.add(self._lanes[0::2], self._lanes[1::2], out=self._whole)
        if self._format.name == "q6":
            np.add(self._halves[0], self._halves[1], out=self._halves[0])


class Place:
    """Where a batch has one piece: scratch for its words, and its part of the sums and scales."""

    def __init__(
        self, fmt: Format, lie: tuple[int, int], sums: Array, scales: F32, supers: F32 | None,
        scratch: Scratch,
    ) -> None:  # fmt: skip
        (p, t, b, _), (_, h, rows, lanes), word = scales.shape, sums.shape, _word(fmt)
        self._bits, self._sums = fmt.bits, sums
        self._shifted = scratch.take("shifted", (h, 4 // h, t, b * 128), word)
        self._words = self._shifted.reshape(4, *lie, -1)[0]
        self._products = scratch.take("products", (h, t, b * 128), word)
        self._apart = self._products.reshape(h, rows, -1, lanes)
        self._stored = scales if fmt.superblocks else scales.view(np.int32)
        self._stored = self._stored.reshape(p, *lie, -1, 16)
        self._supers = None
        if supers is not None:
            self._supers = supers.view(np.int32).reshape(len(supers), *lie, -1, 16)
        if fmt.bits in (5, 6):
            k, words = 16 // (fmt.bits - 4), b * lanes * h
            self._high_words = scratch.take("highs", (k, t, words), word)
            self._stored_highs = self._high_words.reshape(k, *lie, -1)
            self._high_shifts = np.arange(0, 16, fmt.bits - 4, dtype=np.uint16).reshape(k, 1, 1, 1)
            self._high_sums = scratch.take("products", (t, words), word)
            self._high_sums_apart = self._high_sums.reshape(rows, h, lanes).transpose(1, 0, 2)

    def load(self, piece: Piece) -> None:
        """Shift the words and put the scales in place: once, for any number of tokens."""
        words = self._shifted
        if self._bits == 8:
            np.bitwise_xor(piece.words, _SIGNS, out=self._words)  # q + 128, unsigned
            np.right_shift(words[0, 0], _BY_BYTE, out=words[0, 1:])
        else:
            np.copyto(self._words, piece.words)
            if self._bits == 6:
                nibbles = words[:, 0]
                np.right_shift(nibbles[0], np.uint16(4), out=nibbles[1])
                np.bitwise_and(nibbles, _NIBBLES, out=nibbles)
                np.right_shift(nibbles, np.uint16(8), out=words[:, 1])
            else:
                np.right_shift(words[0, 0], _BY_NIBBLE, out=words[0, 1:])
        if piece.highs is not None:
            np.right_shift(piece.highs, self._high_shifts, out=self._stored_highs)
        np.copyto(self._stored, piece.scales)
        if piece.supers is not None and self._supers is not None:
            np.copyto(self._supers, piece.supers)

    def sum(self, factors: Factors, token: int) -> None:
        """Integer sums of every row and block (and half), by lanes."""
        sums = self._sums[token]
        np.einsum("hkti,hki->hti", self._shifted, factors.words[token], out=self._products)
        np.einsum("hxvl->hxl", self._apart, out=sums)
        if factors.highs is not None and factors.lanes is not None:
            np.einsum("kti,ki->ti", self._high_words, factors.highs[token], out=self._high_sums)
            np.add(sums, self._high_sums_apart, out=sums)
            by_tile = sums.reshape(*self._products.shape[:2], -1)
            np.add(by_tile, factors.lanes[token], out=by_tile)


def _word(fmt: Format) -> type[np.unsignedinteger[Any]]:
    return np.uint32 if fmt.bits == 8 else np.uint16
