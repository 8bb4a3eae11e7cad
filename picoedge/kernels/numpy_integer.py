"""Products for few tokens: integer sums straight from the packed words.

A chunk of tiles is worked on in scratch that stays in the cache: words shifted (see
`numpy_activations`), multiplied and summed over shifts, then over the words of a row in a block,
then over the lanes of a word; block sums become f32 and are weighed by the scales, in block
order. No BLAS and no f32 copy of a quant.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from picoedge.kernels.blocks import FORMATS
from picoedge.kernels.numpy_activations import Activations, Factors
from picoedge.kernels.numpy_planes import Planes, widen
from picoedge.kernels.numpy_team import Scratch

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

_TAKEN_OFF = {4: 0, 5: 16, 6: 32, 8: -128}  # from each quant of a width, so that sums fit a lane
_NIBBLES = np.uint16(0x0F0F)
_SIGNS = np.uint32(0x80808080)
_BY_NIBBLE = np.array([4, 8, 12], np.uint16).reshape(3, 1, 1)
_BY_BYTE = np.array([8, 16, 24], np.uint32).reshape(3, 1, 1)


class ChunkShape(NamedTuple):
    """How the tiles of a chunk lie: `outer` times `inner` of them.

    Where shards are stacked by rows these are shards and tiles, and all meet the same
    activations. Where they are stacked by columns they are tiles and shards: what a tile has in
    each shard makes one long row of blocks.
    """

    format: str
    outer: int
    inner: int
    blocks: int
    superblocks: int
    by_columns: bool


class Chunk:
    """Some tiles of some shards."""

    def __init__(
        self, planes: Planes, shards: slice, tiles: slice, *, by_columns: bool
    ) -> None:
        spec = planes.spec
        self.words = planes.words[shards, tiles]
        self.highs = None if planes.highs is None else planes.highs[shards, tiles]
        self.scales = planes.scales[:, shards, tiles]
        self.supers = None if planes.supers is None else planes.supers[:, shards, tiles]
        if by_columns:
            self.words = self.words.swapaxes(0, 1)
            self.highs = None if self.highs is None else self.highs.swapaxes(0, 1)
            self.scales = self.scales.swapaxes(1, 2)
            self.supers = None if self.supers is None else self.supers.swapaxes(1, 2)
        superblocks = spec.cols // spec.superblock if spec.format.superblocks else 0
        outer, inner = self.words.shape[:2]
        self.shape = ChunkShape(
            spec.format.name, outer, inner, planes.blocks, superblocks, by_columns
        )

    def load(self, scratch: Scratch) -> Bench:
        """The chunk on the thread's bench for its shape."""
        bench: Bench = scratch.once(self.shape, self._make)
        bench.load(self)
        return bench

    def _make(self, scratch: Scratch) -> Bench:
        return Bench(self.shape, scratch)


class Bench:
    """Scratch for chunks of one shape: t tiles of b blocks in g groups, which are summed apart.

    h is the halves of a block summed apart, p the parts of a scale.
    """

    def __init__(self, shape: ChunkShape, scratch: Scratch) -> None:
        fmt, outer, inner = FORMATS[shape.format], shape.outer, shape.inner
        t, g = (outer, inner) if shape.by_columns else (outer * inner, 1)
        b = g * shape.blocks
        h = 2 if fmt.bits == 6 else 1
        p = 2 if fmt.has_min or fmt.name == "q6k" else 1
        self._format, self._take_off = fmt, np.float32(_TAKEN_OFF[fmt.bits] - fmt.offset)
        self._take_words(shape, scratch, h, t, b)
        values = scratch.take("values", (max(p, h), t, b, 16), np.float32)
        scales = scratch.take("scales", (p, t, b, 16), np.float32)
        self._halves, self._mins = values[:h], values[1:]
        self._whole = self._halves.reshape(-1)
        self._scaled = values[:1] if fmt.has_min else values[:p]
        self._values = values[:p].reshape(p, t, g, -1, 16)
        self._scales = scales.reshape(p, t, g, -1, 16)
        self._chunk_scales = scales.reshape(p, outer, inner, -1, 16)
        self._result = scratch.take("result", (g, t, 16), np.float32)
        if fmt.superblocks:
            s, m = g * shape.superblocks, 1 + fmt.has_min
            self._super_values = values[:p].reshape(p, t, s, -1, 16)
            self._super_scales = scales.reshape(p, t, s, -1, 16)
            self._super_sums = scratch.take("super_sums", (p, t, s, 16), np.float32)
            self._apart_sums = self._super_sums.reshape(p, t, g, -1, 16)
            self._supers = scratch.take("supers", (m, t, g, s // g, 16), np.float32)
            self._chunk_supers = self._supers.reshape(m, outer, inner, -1, 16)

    def _take_words(self, shape: ChunkShape, scratch: Scratch, h: int, t: int, b: int) -> None:
        bits, chunk = self._format.bits, (shape.outer, shape.inner)
        word, lanes = (np.uint32, 16) if bits == 8 else (np.uint16, 32)
        self._shifted = scratch.take("shifted", (h, 4 // h, t, b * 128), word)
        self._chunk_shifted = self._shifted.reshape(4, *chunk, -1)
        self._products = scratch.take("products", (h, t, b * 128), word)
        self._apart = self._products.reshape(h, t * b, -1, lanes)
        self._sums = scratch.take("sums", (h, t * b, lanes), word)
        self._signed_sums = self._sums.reshape(-1).view(np.int32 if bits == 8 else np.int16)
        if bits in (5, 6):
            k, words = 16 // (bits - 4), b * lanes * h
            self._highs = scratch.take("highs", (k, t, words), word)
            self._chunk_highs = self._highs.reshape(k, *chunk, -1)
            self._high_shifts = np.arange(0, 16, bits - 4, dtype=np.uint16).reshape(k, 1, 1, 1)
            self._high_sums = scratch.take("products", (t, words), word)
            self._high_sums_apart = self._high_sums.reshape(t * b, h, lanes).transpose(1, 0, 2)
            self._lane_sums = self._sums.reshape(h, t, b * lanes)
        if bits < 8:
            self._lanes = scratch.take("lanes", (self._sums.size,), np.float32)

    def load(self, chunk: Chunk) -> None:
        """Shift the words and widen the scales: once, for any number of tokens."""
        bits = self._format.bits
        if bits == 8:
            self._load_bytes(chunk.words)
        elif bits == 6:
            self._load_halves(chunk.words)
        else:
            np.copyto(self._chunk_shifted[0], chunk.words)
            np.right_shift(self._shifted[0, 0], _BY_NIBBLE, out=self._shifted[0, 1:])
        if chunk.highs is not None:
            np.right_shift(chunk.highs, self._high_shifts, out=self._chunk_highs)
        if chunk.supers is None:
            widen(chunk.scales, self._chunk_scales)
        else:
            np.copyto(self._chunk_scales, chunk.scales)
            widen(chunk.supers, self._chunk_supers)
            np.negative(self._supers[1:], out=self._supers[1:])  # minimums are subtracted

    def _load_bytes(self, words: Array) -> None:
        np.bitwise_xor(words, _SIGNS, out=self._chunk_shifted[0])  # q + 128, unsigned
        np.right_shift(self._shifted[0, 0], _BY_BYTE, out=self._shifted[0, 1:])

    def _load_halves(self, words: Array) -> None:
        nibbles = self._shifted[:, 0]
        np.copyto(self._chunk_shifted[0], words)
        np.right_shift(nibbles[0], np.uint16(4), out=nibbles[1])
        np.bitwise_and(nibbles, _NIBBLES, out=nibbles)
        np.right_shift(nibbles, np.uint16(8), out=self._shifted[:, 1])

    def multiply(self, x: Activations, token: int) -> F32:
        """The loaded chunk times one token: [g, t, 16], valid until the next use of the bench.

        g is the shards of a chunk by columns, else 1.
        """
        self._sum_words(x.factors(self._format.bits), token)
        scaled = self._scaled
        if self._take_off:
            np.add(scaled, x.totals[token] * self._take_off, out=scaled)
        np.multiply(scaled, x.scales[token], out=scaled)
        if self._format.has_min:
            np.copyto(self._mins, x.scaled_totals[token])
        if not self._format.superblocks:
            return np.einsum("ptgbr,ptgbr->gtr", self._values, self._scales, out=self._result)
        np.einsum(
            "ptsbr,ptsbr->ptsr", self._super_values, self._super_scales, out=self._super_sums
        )
        return np.einsum("ptgsr,ptgsr->gtr", self._apart_sums, self._supers, out=self._result)

    def _sum_words(self, factors: Factors, token: int) -> None:
        """Integer sums of every row and block (and half) into the values, as f32."""
        np.einsum("hkti,hki->hti", self._shifted, factors.words[token], out=self._products)
        np.einsum("hxvl->hxl", self._apart, out=self._sums)
        if self._format.bits == 8:
            np.copyto(self._whole, self._signed_sums)
            return
        if factors.highs is not None and factors.lanes is not None:
            np.einsum("kti,ki->ti", self._highs, factors.highs[token], out=self._high_sums)
            np.add(self._sums, self._high_sums_apart, out=self._sums)
            np.add(self._lane_sums, factors.lanes[token], out=self._lane_sums)
        np.copyto(self._lanes, self._signed_sums)
        np.add(self._lanes[0::2], self._lanes[1::2], out=self._whole)
        if self._format.name == "q6":
            np.add(self._halves[0], self._halves[1], out=self._halves[0])
