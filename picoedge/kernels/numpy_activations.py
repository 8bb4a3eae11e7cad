"""Activations in int8 blocks, and laid out beside the weights they will be multiplied with.

The planes of `blocks.py` are read as u16 (q8: u32) words. A word W of nibbles n0..n3 holds
four columns of one row, and since n_k = (W >> 4k) - 16 (W >> 4(k+1)),

    n0 x0 + .. + n3 x3 = W x0 + (W >> 4)(x1 - 16 x0) + (W >> 8)(x2 - 16 x1) + (W >> 12)(x3 - 16 x2)

holds modulo 2^16 whatever overflows on the way: no masks, and sixteen bits carry every sum that
fits in them. Bits, pairs of bits and bytes go the same way. `Factors` are the factors on the
right, repeated for the 16 rows of a tile so that a multiplication runs along memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from picoedge.kernels.blocks import BLOCK_COLS, TILE_ROWS
from picoedge.kernels.numpy_blas import multiply

F32 = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

_LEAST = np.float32(1e-30)  # under it 127 / amax would not be finite; such a block is zeros


@dataclass(frozen=True, eq=False)
class Factors:
    """Factors for one width of quants, k shifts of h halves (6 bits: 2) of a block.

    `words` u16 (8 bits: u32) [n, h, k, B*128] for the quants plane, `highs` u16 [n, k, B*32*h]
    for the plane of high bits, `lanes` u16 [n, h, 1, B*32] what is added to each lane's sum.
    """

    words: Array
    highs: Array | None = None
    lanes: Array | None = None


class Activations:
    """Rows of activations [n, C] and what products need made of them, each when first asked."""

    def __init__(self, plain: F32) -> None:
        self.plain = plain
        self._factors: dict[int, Factors] = {}

    @cached_property
    def _blocks(self) -> tuple[F32, F32]:
        """Whole numbers -127..127 [n, B, 32] and their scales, amax / 127, [n, B, 1]."""
        cut = self.plain.reshape(len(self.plain), -1, BLOCK_COLS)
        amax: F32 = np.maximum.reduce(np.abs(cut), axis=2, keepdims=True)
        whole = cut * (np.float32(127) / np.maximum(amax, _LEAST))
        return np.rint(whole, out=whole), amax / np.float32(127)

    @cached_property
    def beside_rows(self) -> F32:
        """Scale, total of the whole numbers, and their product, of each block: [3, n, B, 16].

        The same for the 16 rows of a tile. The product is what a minimum is multiplied by.
        """
        whole, scales = self._blocks
        one = np.empty((3, *scales.shape), np.float32)
        one[0] = scales
        np.add.reduce(whole, axis=2, keepdims=True, out=one[1])
        np.multiply(one[0], one[1], out=one[2])
        out = np.empty((*one.shape[:3], TILE_ROWS), np.float32)
        out[...] = one
        return out

    def columns(self, groups: int) -> F32:
        """What the blocks stand for, in `groups` runs of columns: f32 [groups, n, C / groups].

        The columns of a run are in the order of `numpy_bands`.
        """
        whole, scales = self._blocks
        x = (whole * scales).reshape(len(whole), groups, -1, 8, 4)
        return x.transpose(1, 0, 4, 2, 3).reshape(groups, len(whole), -1)

    def prepare(self, bits: int) -> None:
        """Make what products with quants of this width need, before threads ask for it."""
        if bits not in self._factors:
            self._factors[bits] = self._make(bits)
            assert self.beside_rows is not None

    def factors(self, bits: int) -> Factors:
        """Factors for quants of 4, 5, 6 or 8 bits, which were prepared."""
        return self._factors[bits]

    def _make(self, bits: int) -> Factors:
        n = len(self.plain)
        if bits == 8:
            return Factors(self._bytes().reshape(n, 1, 4, -1))
        if bits == 4:
            return Factors(self._lanes(_nibbles()).reshape(n, 1, 4, -1))
        if bits == 5:
            return Factors(
                self._lanes(_nibbles()).reshape(n, 1, 4, -1),
                self._lanes(_bits()).reshape(n, 16, -1),
                self._lanes(_offsets(1, 16)).reshape(n, 1, 1, -1),
            )
        return Factors(
            self._lanes(_halves_of_nibbles()).reshape(n, 2, 2, -1),
            self._lanes(_pairs_of_bits()).reshape(n, 8, -1),
            self._lanes(_offsets(2, 32)).reshape(n, 2, 1, -1),
        )

    def _combine(self, matrix: F32) -> F32:
        """Each block times matrix [32, k, m], in whole numbers that f32 holds: [n, k, B, m]."""
        whole = self._blocks[0]
        _, k, m = matrix.shape
        out = np.empty((whole.shape[0] * whole.shape[1], k * m), np.float32)
        multiply(whole.reshape(-1, BLOCK_COLS), matrix.reshape(BLOCK_COLS, -1), out)
        return out.reshape(*whole.shape[:2], k, m).transpose(0, 2, 1, 3)

    def _lanes(self, matrix: F32) -> Array:
        """Factors for u16 words, m ending in a row's two lanes: u16 [n, k, B, m / 2, 16 * 2]."""
        combined = self._combine(matrix)
        small = np.empty(combined.shape, np.int16)
        np.copyto(small, combined, casting="unsafe")
        pairs = small.view(np.uint32)  # both lanes of a row in one word
        out = np.empty((*pairs.shape, TILE_ROWS), np.uint32)
        out[...] = pairs[..., None]
        return out.view(np.uint16)

    def _bytes(self) -> Array:
        """Factors for u32 words: [n, 4, B, 8, 16]."""
        combined = self._combine(_bytes())
        out = np.empty((*combined.shape, TILE_ROWS), np.int32)
        np.copyto(out, combined[..., None], casting="unsafe")
        return out.view(np.uint32)


def _elements(*shape: int) -> Array:
    return np.arange(BLOCK_COLS).reshape(shape)


def _unshifted(order: Array, base: int, unit: int = 1) -> F32:
    """unit (x_k - base x_(k-1)) where x_k = element order[k, m]: a matrix [32, k, m]."""
    out = np.zeros((BLOCK_COLS, *order.shape), np.float32)
    word = np.arange(order.shape[1])
    for k, elements in enumerate(order):
        out[elements, k, word] = unit
        if k:
            out[order[k - 1], k, word] = -base * unit
    return out


@cache
def _nibbles() -> F32:
    order = _elements(2, 4, 2, 2)  # nibble, v, lane, byte
    return _unshifted(order.transpose(3, 0, 1, 2).reshape(4, 8), 16)


@cache
def _bits() -> F32:
    order = _elements(8, 2, 2)  # v, lane, byte
    return _unshifted(order.transpose(2, 0, 1).reshape(16, 2), 2, 16)


@cache
def _halves_of_nibbles() -> F32:
    """Low and high nibbles are masked apart, since each half of a block is summed on its own."""
    order = _elements(2, 4, 2, 2).transpose(0, 3, 1, 2).reshape(2, 2, 8)  # half, byte, (v, lane)
    return np.concatenate([_unshifted(half, 256) for half in order], axis=1)


@cache
def _pairs_of_bits() -> F32:
    order = _elements(2, 4, 2, 2)  # half, v, lane, byte
    return _unshifted(order.transpose(3, 1, 0, 2).reshape(8, 4), 4, 16)


@cache
def _bytes() -> F32:
    return _unshifted(_elements(8, 4).T, 256)


@cache
def _offsets(halves: int, offset: int) -> F32:
    """-offset times the sum of a lane's elements: [32, halves, 2]."""
    out = np.zeros((halves, BLOCK_COLS // halves // 4, 2, 2, halves, 2), np.float32)
    for half in range(halves):
        for lane in range(2):
            out[half, :, lane, :, half, lane] = -offset
    return out.reshape(BLOCK_COLS, halves, 2)
