"""Activations in int8 blocks, and laid out beside the weights they will be multiplied with.

The planes of `blocks.py` are read as u16 (q8: u32) words. A word W of nibbles n0..n3 holds
four columns of one row, and since n_k = (W >> 4k) - 16 (W >> 4(k+1)),

    n0 x0 + .. + n3 x3 = W x0 + (W >> 4)(x1 - 16 x0) + (W >> 8)(x2 - 16 x1) + (W >> 12)(x3 - 16 x2)

holds modulo 2^16 whatever overflows on the way: no masks are needed, and 16 bits are enough for
every sum that fits in them. The same holds for bits, pairs of bits and bytes. The factors on the
right are a matrix of whole numbers times the block's activations; they are repeated for the 16
rows of a tile so that a multiplication runs along memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from picoedge.kernels.arrays import F32, Array
from picoedge.kernels.blocks import BLOCK_COLS, TILE_ROWS
from picoedge.kernels.reference.operations import multiply
from picoedge.kernels.reference.threads import Program, Scratch

_LEAST = np.float32(1e-30)  # below it 127 / amax would not be finite; such a block becomes zeros
_TOP = np.float32(127)


@dataclass(frozen=True, eq=False)
class QuantFactors:
    """Factors for one width of quants, k shifts of h halves (6 bits: 2) of a block.

    `words` u16 (8 bits: u32) [h, k, B*128] for the quants plane, `highs` u16 [k, B*32*h] for
    the plane of high bits, `lanes` u16 [h, 1, B*32], added to each lane's sum.
    """

    words: Array
    highs: Array | None = None
    lanes: Array | None = None


class Operand:
    """One token's activations [C] as factors for packed words, in buffers that are kept.

    `beside_rows` [3, B, 16]: of each block the scale, the sum of its int8 values and the product of
    the two (a minimum is multiplied by it), repeated for the 16 rows of a tile.
    """

    def __init__(self, cols: int, _: Scratch) -> None:
        blocks = cols // BLOCK_COLS
        self.plain = np.empty(cols, np.float32)
        self.beside_rows = np.empty((3, blocks, TILE_ROWS), np.float32)
        self._whole = np.empty((blocks, BLOCK_COLS), np.float32)  # -127 .. 127
        self._combined = np.empty(4 * cols, np.float32)
        self._factors: dict[int, tuple[QuantFactors, Program]] = {}

    def factors(self, bits: int) -> QuantFactors:
        """The buffers that `prepare` fills with factors for quants of 4, 5, 6 or 8 bits."""
        return self._made(bits)[0]

    def prepare(self, program: Program, widths: set[int]) -> None:
        """Append: quantize `plain` to int8 blocks; make the factors for these widths of quants."""
        blocks = len(self._whole)
        cut = self.plain.reshape(blocks, BLOCK_COLS)
        amax, inverse = np.empty((2, blocks, 1), np.float32)
        one = np.empty((3, blocks, 1), np.float32)
        program.add(np.abs, cut, self._whole)
        program.add(np.maximum.reduce, self._whole, 1, None, amax, True)
        program.add(np.maximum, amax, _LEAST, out=inverse)
        program.add(np.divide, _TOP, inverse, inverse)
        program.add(np.multiply, cut, inverse, self._whole)
        program.add(np.rint, self._whole, self._whole)
        program.add(np.divide, amax, _TOP, one[0])
        program.add(np.add.reduce, self._whole, 1, None, one[1], True)
        program.add(np.multiply, one[0], one[1], one[2])
        program.add(np.copyto, self.beside_rows, one)
        for bits in sorted(widths):
            program.steps += self._made(bits)[1].steps

    def _made(self, bits: int) -> tuple[QuantFactors, Program]:
        if bits not in self._factors:
            program = Program()
            self._factors[bits] = self._make(bits, program), program
        return self._factors[bits]

    def _make(self, bits: int, program: Program) -> QuantFactors:
        halves, (words, *others) = 2 if bits == 6 else 1, _matrices(bits)
        factors = QuantFactors(self._repeat(program, words, bits).reshape(halves, 4 // halves, -1))
        if not others:
            return factors
        highs, offsets = (self._repeat(program, matrix, bits) for matrix in others)
        return replace(
            factors, highs=highs.reshape(len(highs), -1), lanes=offsets.reshape(halves, 1, -1)
        )

    def _combine(self, program: Program, matrix: F32) -> F32:
        """Each block times matrix [32, k, m], in whole numbers that f32 holds: [k, B, m]."""
        blocks, (_, k, m) = len(self._whole), matrix.shape
        out = self._combined[: blocks * k * m].reshape(blocks, k * m)
        program.add(multiply, self._whole, matrix.reshape(BLOCK_COLS, -1), out)
        return out.reshape(blocks, k, m).transpose(1, 0, 2)

    def _repeat(self, program: Program, matrix: F32, bits: int) -> Array:
        """`_combine` as integers, repeated for 16 rows.

        8 bits: u32 [k, B, m, 16]; else m ends in a row's two lanes: u16 [k, B, m / 2, 16 * 2].
        """
        combined = self._combine(program, matrix)
        small = np.empty(combined.shape, np.int32 if bits == 8 else np.int16)
        program.add(np.copyto, small, combined, "unsafe")
        words = small.view(np.uint32)  # of i16: both lanes of a row in one word
        out = np.empty((*words.shape, TILE_ROWS), np.uint32)
        program.add(np.copyto, out, words[..., None])
        return out if bits == 8 else out.view(np.uint16)


def rounded_columns(x: F32, groups: int) -> F32:
    """x [n, C] after rounding to int8 blocks, cut by columns: f32 [groups, n, C / groups].

    The columns of each part are in the order of `planes.band`.
    """
    cut = x.reshape(len(x), -1, BLOCK_COLS)
    amax: F32 = np.maximum.reduce(np.abs(cut), axis=2, keepdims=True)
    whole: F32 = np.multiply(cut, _TOP / np.maximum(amax, _LEAST), dtype=np.float32)
    np.rint(whole, out=whole)
    whole *= amax / _TOP
    apart: F32 = whole.reshape(len(x), groups, -1, 8, 4)
    return apart.transpose(1, 0, 4, 2, 3).reshape(groups, len(x), -1)


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
def _matrices(bits: int) -> tuple[F32, ...]:
    """For the words of quants; 5 and 6 bits: for the words of high bits, and for the offset."""
    if bits == 8:
        return (_unshifted(_elements(8, 4).T, 256),)
    order = _elements(2, 4, 2, 2)  # nibble (of 6 bits: half), v, lane, byte
    if bits == 6:
        # Low and high nibbles are masked apart, since each half of a block is summed on its own.
        halves = order.transpose(0, 3, 1, 2).reshape(2, 2, 8)  # half, byte, (v, lane)
        nibbles = np.concatenate([_unshifted(half, 256) for half in halves], axis=1)
        pairs_of_bits = _unshifted(order.transpose(3, 1, 0, 2).reshape(8, 4), 4, 16)
        return nibbles, pairs_of_bits, _offsets(2, 32)
    nibbles = _unshifted(order.transpose(3, 0, 1, 2).reshape(4, 8), 16)
    if bits == 4:
        return (nibbles,)
    high_bits = _elements(8, 2, 2).transpose(2, 0, 1).reshape(16, 2)  # of v, lane, byte
    return nibbles, _unshifted(high_bits, 2, 16), _offsets(1, 16)


def _offsets(halves: int, offset: int) -> F32:
    """-offset times the sum of a lane's elements: [32, halves, 2]."""
    out = np.zeros((halves, BLOCK_COLS // halves // 4, 2, 2, halves, 2), np.float32)
    for half in range(halves):
        for lane in range(2):
            out[half, :, lane, :, half, lane] = -offset
    return out.reshape(BLOCK_COLS, halves, 2)
