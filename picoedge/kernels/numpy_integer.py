"""Products for few tokens: integer sums straight from the packed words.

A chunk of tiles is worked on in scratch that stays in the cache: words shifted (see
`numpy_activations`), multiplied and summed over shifts, then over the words of a row in a block,
then over the lanes of a word; block sums become f32 and are weighed by the scales, in block
order. No BLAS and no f32 copy of a quant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from picoedge.kernels.blocks import Format
from picoedge.kernels.numpy_activations import Activations
from picoedge.kernels.numpy_planes import Planes, widen
from picoedge.kernels.numpy_team import Scratch

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

_TAKEN_OFF = {4: 0, 5: 16, 6: 32, 8: -128}  # from each quant of a width, so that sums fit a lane
_NIBBLES = np.uint16(0x0F0F)


@dataclass(frozen=True)
class ChunkShape:
    """Shards and tiles of a chunk, and how they lie.

    `groups` is 1 where all tiles meet the same activations, and `shards` where each shard has
    its own columns of them.
    """

    format: Format
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
        self.shape = ChunkShape(spec.format, c, t, planes.blocks, supers, c if summed else 1)

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
        fmt, g, b, c = shape.format, shape.groups, shape.blocks, shape.shards
        t = c * shape.tiles // g
        self._format, self._take_off = fmt, _TAKEN_OFF[fmt.bits] - fmt.offset
        h = 2 if fmt.bits == 6 else 1
        word, lanes = (np.uint32, 16) if fmt.bits == 8 else (np.uint16, 32)
        self._shifted = scratch.take("shifted", (h, 4 // h, g, t, b * 128), word)
        self._chunk_shifted = self._shifted.reshape(4, c, shape.tiles, b * 128)
        self._products = scratch.take("products", (h, g, t, b * 128), word)
        self._sums = scratch.take("sums", (h, g * t * b, lanes), word)
        self._high_bits = fmt.bits - 4 if fmt.bits < 8 else 0
        if self._high_bits:
            shape_of_highs = (16 // self._high_bits, c, shape.tiles, b * 32 * h)
            self._chunk_highs = scratch.take("highs", shape_of_highs, word)
            self._highs = self._chunk_highs.reshape(-1, g, t, b * 32 * h)
            self._high_sums = scratch.take("products", (g, t, b * 32 * h), word)
        p = 2 if fmt.has_min or fmt.name == "q6k" else 1
        self._halves = scratch.take("values", (max(p, h), g, t, b, 16), np.float32)
        self._values = self._halves[:p]
        self._scales = scratch.take("scales", (p, g, t, b, 16), np.float32)
        if fmt.superblocks:
            s = shape.superblocks
            self._super_sums = scratch.take("super_sums", (p, g, t, s, 16), np.float32)
            self._supers = scratch.take("supers", (1 + fmt.has_min, g, t, s, 16), np.float32)
        self._result = scratch.take("result", (g, t, 16), np.float32)

    def load(self, chunk: Chunk) -> None:
        """Shift the words and widen the scales: once, for any number of tokens."""
        if self._format.bits == 8:
            self._load_bytes(chunk.words)
        elif self._format.bits == 6:
            self._load_halves(chunk.words)
        else:
            shifts = np.array([0, 4, 8, 12], np.uint16).reshape(4, 1, 1, 1)
            np.right_shift(chunk.words, shifts, out=self._chunk_shifted)
        if chunk.highs is not None:
            shifts = np.arange(0, 16, self._high_bits, dtype=np.uint16).reshape(-1, 1, 1, 1)
            np.right_shift(chunk.highs, shifts, out=self._chunk_highs)
        scales = self._scales.reshape(chunk.scales.shape)
        if chunk.supers is None:
            widen(chunk.scales, scales)
        else:
            np.copyto(scales, chunk.scales)
            widen(chunk.supers, self._supers.reshape(chunk.supers.shape))
            np.negative(self._supers[1:], out=self._supers[1:])  # minimums are subtracted

    def _load_bytes(self, words: Array) -> None:
        shifted = self._chunk_shifted
        np.bitwise_xor(words, np.uint32(0x80808080), out=shifted[0])  # q + 128, unsigned
        shifts = np.array([8, 16, 24], np.uint32).reshape(3, 1, 1, 1)
        np.right_shift(shifted[0], shifts, out=shifted[1:])

    def _load_halves(self, words: Array) -> None:
        nibbles, shifts = self._chunk_shifted[0::2], np.array([0, 4], np.uint16)
        np.right_shift(words, shifts.reshape(2, 1, 1, 1), out=nibbles)
        np.bitwise_and(nibbles, _NIBBLES, out=nibbles)
        np.right_shift(nibbles, np.uint16(8), out=self._chunk_shifted[1::2])

    def multiply(self, x: Activations, token: int) -> F32:
        """The loaded chunk times one token: [g, t, 16], valid until the next use of the bench."""
        self._sum_words(x, token)
        values = self._values
        scaled = values[:1] if self._format.has_min else values
        if self._take_off:
            scaled += x.totals[token] * np.float32(self._take_off)
        scaled *= x.scales[token]
        if self._format.has_min:
            values[1] = x.scaled_totals[token]
        if not self._format.superblocks:
            return np.einsum("pgtbr,pgtbr->gtr", values, self._scales, out=self._result)
        p, g, t, s, _ = self._super_sums.shape
        apart = (p, g, t, s, -1, 16)
        np.einsum(
            "pgtsbr,pgtsbr->pgtsr", values.reshape(apart), self._scales.reshape(apart),
            out=self._super_sums,
        )  # fmt: skip
        return np.einsum("pgtsr,pgtsr->gtr", self._super_sums, self._supers, out=self._result)

    def _sum_words(self, x: Activations, token: int) -> None:
        """Integer sums of every row and block (and half) into the values, as f32."""
        factors, sums = x.factors(self._format.bits), self._sums
        np.einsum("hkgti,hkgi->hgti", self._shifted, factors.words[token], out=self._products)
        halves, rows, lanes = sums.shape
        np.einsum("hxvl->hxl", self._products.reshape(halves, rows, -1, lanes), out=sums)
        if self._format.bits == 8:
            np.copyto(self._values, sums.view(np.int32).reshape(self._values.shape))
            return
        if factors.highs is not None and factors.lanes is not None:
            np.einsum("kgti,kgi->gti", self._highs, factors.highs[token], out=self._high_sums)
            sums += self._high_sums.reshape(rows, halves, lanes).transpose(1, 0, 2)
            lanewise = sums.reshape(*self._products.shape[:3], -1)
            lanewise += factors.lanes[token]
        pairs = sums.view(np.int16).reshape(-1, 2)
        whole = self._halves[:halves].reshape(-1)
        np.add(pairs[:, 0], pairs[:, 1], out=whole, dtype=np.float32)
        if self._format.name == "q6":
            np.add(self._halves[0], self._halves[1], out=self._halves[0])
