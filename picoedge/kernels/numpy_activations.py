"""Activations in int8 blocks, and laid out beside the weights they will be multiplied with.

The planes of `blocks.py` are read as u16 (q8: u32) words. A word W of nibbles n0..n3 holds
four columns of one row, and since n_k = (W >> 4k) - 16 (W >> 4(k+1)),

    n0 x0 + .. + n3 x3 = W x0 + (W >> 4)(x1 - 16 x0) + (W >> 8)(x2 - 16 x1) + (W >> 12)(x3 - 16 x2)

holds modulo 2^16 whatever overflows on the way: no masks, and sixteen bits carry every sum that
fits in them. Bits, pairs of bits and bytes go the same way. `Factors` are the factors on
the right, repeated for the 16 rows of a tile so that a multiplication runs along memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from picoedge.kernels.blocks import BLOCK_COLS, TILE_ROWS

F32 = npt.NDArray[np.float32]
I16 = npt.NDArray[np.int16]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Factors:
    """Factors for one width of quants, k shifts of h halves (6 bits: 2) of a block.

    `words` [n, h, k, B*128] for the quants plane, `highs` [n, k, B*32*h] for the plane of high
    bits, `lanes` [n, h, 1, B*32] what is to be added to each lane's sum.
    """

    words: U16 | U32
    highs: U16 | None = None
    lanes: U16 | None = None


class Activations:
    """Rows of activations [n, C] and what products need made of them, each when first asked."""

    def __init__(self, plain: F32) -> None:
        self.plain = plain

    @cached_property
    def _blocks(self) -> tuple[F32, F32]:
        """Whole numbers -127..127 [n, B, 32] and their scales, amax / 127, [n, B]."""
        cut = self.plain.reshape(len(self.plain), -1, BLOCK_COLS)
        amax = np.maximum.reduce(np.abs(cut), axis=2)
        inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax > 1e-30)
        whole = cut * inverse[:, :, None]
        return np.rint(whole, out=whole), amax / np.float32(127)

    @cached_property
    def _whole(self) -> I16:
        return self._blocks[0].astype(np.int16)

    @cached_property
    def _totals(self) -> F32:
        totals: F32 = np.add.reduce(self._blocks[0], axis=2)  # [n, B], exact
        return totals

    @cached_property
    def scales(self) -> F32:
        """The scale of each block, [n, B, 16]."""
        return _beside_rows(self._blocks[1])

    @cached_property
    def totals(self) -> F32:
        """The whole numbers of each block summed, [n, B, 16]."""
        return _beside_rows(self._totals)

    @cached_property
    def scaled_totals(self) -> F32:
        """Scale times total of each block, [n, B, 16]: what a minimum is multiplied by."""
        return _beside_rows(self._totals * self._blocks[1])

    def columns(self, groups: int) -> F32:
        """What the blocks stand for, in `groups` runs of columns: f32 [groups, n, C / groups].

        The columns of a run are in the order of `numpy_bands`.
        """
        whole, scales = self._blocks
        x = (whole * scales[:, :, None]).reshape(len(whole), groups, -1, 8, 4)
        return x.transpose(1, 0, 4, 2, 3).reshape(groups, len(whole), -1)

    def prepare(self, bits: int) -> None:
        """Make what products with quants of this width need, before threads ask for it."""
        self.factors(bits), self.scales, self.totals, self.scaled_totals

    def factors(self, bits: int) -> Factors:
        """Factors for quants of 4, 5, 6 or 8 bits."""
        if bits == 4:
            return self._four
        if bits == 5:
            return self._five
        return self._six if bits == 6 else self._eight

    @cached_property
    def _four(self) -> Factors:
        n = len(self._whole)
        x = self._whole.reshape(n, -1, 2, 4, 2, 2)  # n, block, nibble, v, lane, byte
        x = x.transpose(0, 5, 2, 1, 3, 4).reshape(n, 4, -1, 4, 2)  # n, k = (byte, nibble), ..
        return Factors(_along_rows(_unshifted(x, 16)).reshape(n, 1, 4, -1))

    @cached_property
    def _five(self) -> Factors:
        n = len(self._whole)
        x = self._whole.reshape(n, -1, 8, 2, 2)  # n, block, v, lane, byte
        x = x.transpose(0, 4, 2, 1, 3).reshape(n, 16, -1, 2) * np.int16(16)  # n, k = (byte, v), ..
        lanes = -np.add.reduce(x, axis=1, dtype=np.int16)  # takes 16 off each quant
        return Factors(
            self._four.words,
            _along_rows(_unshifted(x, 2)).reshape(n, 16, -1),
            _along_rows(lanes).reshape(n, 1, 1, -1),
        )

    @cached_property
    def _six(self) -> Factors:
        """Each half of 16 columns (the low nibbles, the high ones) is summed on its own."""
        n = len(self._whole)
        x = self._whole.reshape(n, -1, 2, 4, 2, 2)  # n, block, half, v, lane, byte
        words = x.transpose(0, 2, 5, 1, 3, 4).reshape(2 * n, 2, -1, 4, 2)  # .., byte, block, ..
        x = x.transpose(0, 5, 3, 1, 2, 4).reshape(n, 8, -1, 2, 2)  # n, k = (byte, v), block, half
        lanes = np.add.reduce(x, axis=1, dtype=np.int16) * np.int16(-32)
        return Factors(
            _along_rows(_unshifted(words, 256)).reshape(n, 2, 2, -1),
            _along_rows(_unshifted(x * np.int16(16), 4)).reshape(n, 8, -1),
            _along_rows(lanes.transpose(0, 2, 1, 3)).reshape(n, 2, 1, -1),
        )

    @cached_property
    def _eight(self) -> Factors:
        n = len(self._whole)
        x = self._whole.reshape(n, -1, 8, 4).astype(np.int32)  # n, block, v, k
        factors = _unshifted(x.transpose(0, 3, 1, 2), 256).view(np.uint32)
        out = np.empty((*factors.shape, TILE_ROWS), np.uint32)
        out[:] = factors[..., None]
        return Factors(out.reshape(n, 1, 4, -1))


def _beside_rows(per_block: F32) -> F32:
    """[n, B] repeated for a tile's rows: [n, B, 16]."""
    out = np.empty((*per_block.shape, TILE_ROWS), np.float32)
    out[:] = per_block[:, :, None]
    return out


def _unshifted(x: npt.NDArray[np.signedinteger], base: int) -> npt.NDArray[np.signedinteger]:
    """x_k - base x_(k-1) along axis 1, wrapping: factors of W >> k digits instead of digits."""
    out = x.copy()
    out[:, 1:] -= x[:, :-1] * x.dtype.type(base)
    return out


def _along_rows(x: npt.NDArray[np.signedinteger]) -> U16:
    """i16 [.., 2 lanes] -> u16 [.., 16 rows, 2 lanes]."""
    pairs = np.ascontiguousarray(x).view(np.uint32)  # both lanes of a row in one word
    out = np.empty((*x.shape[:-1], TILE_ROWS, 1), np.uint32)
    out[:] = pairs[..., None, :]
    return out.view(np.uint16)
