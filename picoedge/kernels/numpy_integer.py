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
_BY_NIBBLE = np.array([0, 4, 8, 12], np.uint16).reshape(4, 1, 1, 1)
_BY_BYTE = np.array([8, 16, 24], np.uint32).reshape(3, 1, 1, 1)


class ChunkShape(NamedTuple):
    """Shards and tiles of a chunk, and how they lie.

    `groups` is 1 where all tiles meet the same activations, and `shards` where each shard has
    its own columns of them.
    """

    format: str
    shards: int
    tiles: int
    blocks: int
    superblocks: int
    groups: int


class Chunk:
    """Some tiles of some shards."""

    def __init__(self, planes: Planes, shards: slice, tiles: slice, *, summed: bool) -> None:
        spec = planes.spec
        self.words = planes.words[shards, tiles]
        self.highs = None if planes.highs is None else planes.highs[shards, tiles]
        self.scales = planes.scales[:, shards, tiles]
        self.supers = None if planes.supers is None else planes.supers[:, shards, tiles]
        c, t = self.words.shape[:2]
        supers = spec.cols // spec.superblock if spec.format.superblocks else 0
        self.shape = ChunkShape(spec.format.name, c, t, planes.blocks, supers, c if summed else 1)

    def load(self, scratch: Scratch) -> Bench:
        """The chunk on the thread's bench for its shape."""
        bench: Bench = scratch.once(self.shape, self._make)
        bench.load(self)
        return bench

    def _make(self, scratch: Scratch) -> Bench:
        return Bench(self.shape, scratch)


class Bench:
    """Scratch for chunks of one shape: g groups of t tiles, h halves of a block, p scale parts."""

    def __init__(self, shape: ChunkShape, scratch: Scratch) -> None:
        fmt, g, b, c = FORMATS[shape.format], shape.groups, shape.blocks, shape.shards
        t = c * shape.tiles // g
        h = 2 if fmt.bits == 6 else 1
        p = 2 if fmt.has_min or fmt.name == "q6k" else 1
        self._format, self._take_off = fmt, np.float32(_TAKEN_OFF[fmt.bits] - fmt.offset)
        self._take_words(scratch, h, g, t, c, b)
        values = scratch.take("values", (max(p, h), g, t, b, 16), np.float32)
        scales = scratch.take("scales", (p, g, t, b, 16), np.float32)
        self._halves, self._values = values[:h], values[:p]
        self._whole = self._halves.reshape(-1)
        self._scaled = values[:1] if fmt.has_min else values[:p]
        self._scales, self._chunk_scales = scales, scales.reshape(p, c, -1, b, 16)
        self._result = scratch.take("result", (g, t, 16), np.float32)
        if fmt.superblocks:
            s = shape.superblocks
            self._super_values = self._values.reshape(p, g, t, s, -1, 16)
            self._super_scales = scales.reshape(p, g, t, s, -1, 16)
            self._super_sums = scratch.take("super_sums", (p, g, t, s, 16), np.float32)
            self._supers = scratch.take("supers", (1 + fmt.has_min, g, t, s, 16), np.float32)
            self._chunk_supers = self._supers.reshape(-1, c, shape.tiles, s, 16)

    def _take_words(self, scratch: Scratch, h: int, g: int, t: int, c: int, b: int) -> None:
        bits = self._format.bits
        word, lanes = (np.uint32, 16) if bits == 8 else (np.uint16, 32)
        shifted = scratch.take("shifted", (4, c, g * t // c, b * 128), word)
        self._chunk_shifted, self._shifted = shifted, shifted.reshape(h, 4 // h, g, t, b * 128)
        self._products = scratch.take("products", (h, g, t, b * 128), word)
        self._apart = self._products.reshape(h, g * t * b, -1, lanes)
        self._sums = scratch.take("sums", (h, g * t * b, lanes), word)
        self._wide_sums = self._sums.reshape(-1).view(np.int32)
        if bits in (5, 6):
            k, words = 16 // (bits - 4), b * lanes * h
            self._chunk_highs = scratch.take("highs", (k, c, g * t // c, words), word)
            self._highs = self._chunk_highs.reshape(k, g, t, words)
            self._high_sums = scratch.take("products", (g, t, words), word)
            high_sums = self._high_sums.reshape(g * t * b, h, lanes)
            self._high_sums_apart = high_sums.transpose(1, 0, 2)
            self._high_shifts = np.arange(0, 16, bits - 4, dtype=np.uint16).reshape(k, 1, 1, 1)
            self._lane_sums = self._sums.reshape(h, g, t, b * lanes)
        if bits < 8:
            lanes_of_pairs = self._sums.reshape(-1).view(np.int16)
            self._evens, self._odds = lanes_of_pairs[0::2], lanes_of_pairs[1::2]

    def load(self, chunk: Chunk) -> None:
        """Shift the words and widen the scales: once, for any number of tokens."""
        bits = self._format.bits
        if bits == 8:
            self._load_bytes(chunk.words)
        elif bits == 6:
            self._load_halves(chunk.words)
        else:
            np.right_shift(chunk.words, _BY_NIBBLE, out=self._chunk_shifted)
        if chunk.highs is not None:
            np.right_shift(chunk.highs, self._high_shifts, out=self._chunk_highs)
        if chunk.supers is None:
            widen(chunk.scales, self._chunk_scales)
        else:
            np.copyto(self._chunk_scales, chunk.scales)
            widen(chunk.supers, self._chunk_supers)
            np.negative(self._supers[1:], out=self._supers[1:])  # minimums are subtracted

    def _load_bytes(self, words: Array) -> None:
        shifted = self._chunk_shifted
        np.bitwise_xor(words, _SIGNS, out=shifted[0])  # q + 128, unsigned
        np.right_shift(shifted[0], _BY_BYTE, out=shifted[1:])

    def _load_halves(self, words: Array) -> None:
        nibbles = self._chunk_shifted[0::2]
        np.right_shift(words, _BY_NIBBLE[:2], out=nibbles)
        np.bitwise_and(nibbles, _NIBBLES, out=nibbles)
        np.right_shift(nibbles, np.uint16(8), out=self._chunk_shifted[1::2])

    def multiply(self, x: Activations, token: int) -> F32:
        """The loaded chunk times one token: [g, t, 16], valid until the next use of the bench."""
        self._sum_words(x.factors(self._format.bits), token)
        scaled = self._scaled
        if self._take_off:
            np.add(scaled, x.totals[token] * self._take_off, out=scaled)
        np.multiply(scaled, x.scales[token], out=scaled)
        if self._format.has_min:
            self._values[1] = x.scaled_totals[token]
        if not self._format.superblocks:
            return np.einsum("pgtbr,pgtbr->gtr", self._values, self._scales, out=self._result)
        np.einsum(
            "pgtsbr,pgtsbr->pgtsr", self._super_values, self._super_scales, out=self._super_sums
        )
        return np.einsum("pgtsr,pgtsr->gtr", self._super_sums, self._supers, out=self._result)

    def _sum_words(self, factors: Factors, token: int) -> None:
        """Integer sums of every row and block (and half) into the values, as f32."""
        np.einsum("hkgti,hkgi->hgti", self._shifted, factors.words[token], out=self._products)
        np.einsum("hxvl->hxl", self._apart, out=self._sums)
        if self._format.bits == 8:
            np.copyto(self._whole, self._wide_sums)
            return
        if factors.highs is not None and factors.lanes is not None:
            np.einsum("kgti,kgi->gti", self._highs, factors.highs[token], out=self._high_sums)
            np.add(self._sums, self._high_sums_apart, out=self._sums)
            np.add(self._lane_sums, factors.lanes[token], out=self._lane_sums)
        np.add(self._evens, self._odds, out=self._whole, dtype=np.float32)
        if self._format.name == "q6":
            np.add(self._halves[0], self._halves[1], out=self._halves[0])
