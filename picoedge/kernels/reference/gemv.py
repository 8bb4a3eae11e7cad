"""Products for one token (matrix times vector): integer sums straight from the packed words.

The words of a group of tiles at a time are shifted (see `activations`), multiplied and summed,
over shifts and then over the words of a row in a block, in scratch that stays in the cache. When
all groups of a batch are summed, the sums become f32 and are multiplied by the scales, in block
order. No BLAS, and no f32 copy of a quant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from picoedge.kernels.arrays import F32, Array
from picoedge.kernels.blocks import BLOCK_COLS, FORMATS, Format
from picoedge.kernels.reference.activations import Operand
from picoedge.kernels.reference.planes import Planes, halves_to_f32
from picoedge.kernels.reference.threads import Program, Scratch

# Subtracted from each quant of a width, so that sums fit a lane.
_SUBTRACTED = {4: 0, 5: 16, 6: 32, 8: -128}
_NIBBLES = np.uint16(0x0F0F)
_SIGNS = np.uint32(0x80808080)
_BY_NIBBLE = np.array([4, 8, 12], np.uint16).reshape(3, 1, 1)
_BY_BYTE = np.array([8, 16, 24], np.uint32).reshape(3, 1, 1)


TileLayout = tuple[int, ...]
"""of a group of tiles: (shards, tiles) where shards are stacked by rows, else (tiles, shards)"""


class BatchShape(NamedTuple):
    """Properties that tiles must share to be multiplied in one batch.

    `blocks` and `superblocks` of a row in one shard; `stacked` shards side by side, by columns: a
    row's blocks in all of them make one long row.
    """

    format: str
    stacked: int
    blocks: int
    superblocks: int

    @classmethod
    def of(cls, planes: Planes, *, by_columns: bool) -> BatchShape:
        """The shape of every tile of a matrix."""
        spec = planes.spec
        superblocks = spec.cols // spec.superblock if spec.format.superblocks else 0
        stacked = planes.count if by_columns else 1
        return cls(spec.format.name, stacked, planes.blocks, superblocks)

    @property
    def cols(self) -> int:
        """Activations that a row is multiplied by."""
        return self.stacked * self.blocks * BLOCK_COLS


def multiply_batch(
    program: Program,
    shape: BatchShape,
    groups: Sequence[Planes],
    operand: Operand,
    scratch: Scratch,
) -> F32:
    """Append the product of the operand with groups of tiles of this shape (`Planes.cut`).

    Returns it, f32 [stacked, tiles, 16].
    The array is in `scratch`: the program must copy it before it computes the next batch.
    """
    layouts = tuple(group.words.shape[:2] for group in groups)
    batch = scratch.once((shape, layouts), BatchScratch)
    for group, room in zip(groups, batch.group_scratch, strict=True):
        room.load(program, group)
        room.sum(program, operand)
    batch.apply_scales(program, operand)
    return batch.result


class BatchScratch:
    """Scratch for a batch: t tiles of b blocks, of g shards side by side.

    h: halves of a block that are summed apart (6 bits: 2); p: parts of a scale (scale and minimum,
    or the scales of both halves: 2).
    """

    def __init__(self, key: tuple[BatchShape, tuple[TileLayout, ...]], scratch: Scratch) -> None:
        shape, layouts = key
        fmt, g = FORMATS[shape.format], shape.stacked
        sizes = [math.prod(layout) // g for layout in layouts]
        t, b = sum(sizes), g * shape.blocks
        h, lanes = 2 if fmt.bits == 6 else 1, 16 if fmt.bits == 8 else 32
        p = 2 if fmt.has_min or fmt.name == "q6k" else 1
        self._format = fmt
        self._sums = scratch.take("sums", (h, t * b, lanes), _word(fmt))
        self._lanes = scratch.take("lanes", (h * t * b * lanes,), np.float32)
        values = scratch.take("values", (max(p, h), t, b, 16), np.float32)
        self._values, self._halves = values[:p], values[:h]
        self._part = scratch.take("part", (b, 16), np.float32)
        self._scales = scratch.take("scales", (p, t, b, 16), np.float32)
        self._supers = None
        if fmt.superblocks:
            s, m = shape.superblocks, 1 + fmt.has_min
            self._supers = scratch.take("supers", (m, t, g * s, 16), np.float32)
            self._super_sums = scratch.take("super_sums", (p, t, g * s, 16), np.float32)
        self.result: F32 = scratch.take("result", (g, t, 16), np.float32)
        self.group_scratch: list[GroupScratch] = []
        start = 0
        for layout, size in zip(layouts, sizes, strict=True):
            tiles = slice(start, start + size)
            sums = self._sums[:, tiles.start * b : tiles.stop * b]
            supers = None if self._supers is None else self._supers[:, tiles]
            self.group_scratch.append(
                GroupScratch(fmt, layout, sums, self._scales[:, tiles], supers, scratch)
            )
            start = tiles.stop

    def apply_scales(self, program: Program, operand: Operand) -> None:
        """Append: the sums of all groups times the scales, added over blocks into `result`."""
        fmt, (scale, total, scaled_total) = self._format, operand.beside_rows
        self._sums_to_f32(program)
        scaled = self._values[:1] if fmt.has_min else self._values
        rest = _SUBTRACTED[fmt.bits] - fmt.offset
        if rest:
            program.add(np.multiply, total, np.float32(rest), self._part)
            program.add(np.add, scaled, self._part, scaled)
        program.add(np.multiply, scaled, scale, scaled)
        if fmt.has_min:
            program.add(np.copyto, self._values[1], scaled_total)
        (g, t, _), (p, _, b, _) = self.result.shape, self._values.shape
        values, scales = self._values, self._scales
        if self._supers is None:
            program.add(halves_to_f32, scales)
        else:
            s = self._supers.shape[2]
            program.add(halves_to_f32, self._supers)
            if fmt.has_min:  # the formula subtracts it
                program.add(np.negative, self._supers[1], self._supers[1])
            apart = (p, t, s, b // s, 16)
            program.add(np.einsum, "ptsbr,ptsbr->ptsr", values.reshape(apart),
                        scales.reshape(apart), out=self._super_sums)  # fmt: skip
            values, scales = self._super_sums, self._supers
        program.add(np.einsum, "ptgbr,ptgbr->gtr", values.reshape(p, t, g, -1, 16),
                    scales.reshape(len(scales), t, g, -1, 16), out=self.result)  # fmt: skip

    def _sums_to_f32(self, program: Program) -> None:
        whole = self._halves.reshape(-1)
        if self._format.bits == 8:
            program.add(np.copyto, whole, self._sums.reshape(-1).view(np.int32))
            return
        program.add(np.copyto, self._lanes, self._sums.reshape(-1).view(np.int16))
        program.add(np.add, self._lanes[0::2], self._lanes[1::2], whole)
        if self._format.name == "q6":
            program.add(np.add, self._halves[0], self._halves[1], self._halves[0])


class GroupScratch:
    """Scratch for one group of a batch: its words, and its part of the batch's sums and scales."""

    def __init__(
        self, fmt: Format, layout: TileLayout, sums: Array, scales: F32,
        supers: F32 | None, scratch: Scratch,
    ) -> None:  # fmt: skip
        (p, t, b, _), (h, _, lanes), word = scales.shape, sums.shape, _word(fmt)
        self._bits, self._sums = fmt.bits, sums
        self._shifted = scratch.take("shifted", (h, 4 // h, t, b * 128), word)
        self._words = self._shifted.reshape(4, *layout, -1)[0]
        self._products = scratch.take("products", (h, t, b * 128), word)
        self._scales = scales if fmt.superblocks else scales.view(np.int32)
        self._scales = self._scales.reshape(p, *layout, -1, 16)
        self._supers = None
        if supers is not None:
            self._supers = supers.view(np.int32).reshape(len(supers), *layout, -1, 16)
        if fmt.bits in (5, 6):
            k, words = 16 // (fmt.bits - 4), b * lanes * h
            self._high_shifted = scratch.take("highs", (k, t, words), word)
            self._high_words = self._high_shifted.reshape(k, *layout, -1)
            self._high_shifts = np.arange(0, 16, fmt.bits - 4, dtype=np.uint16).reshape(k, 1, 1, 1)
            self._high_products = scratch.take("products", (t, words), word)

    def load(self, program: Program, group: Planes) -> None:
        """Append: shift the group's words into scratch and copy its scales."""
        words = self._shifted
        if self._bits == 8:
            program.add(np.bitwise_xor, group.words, _SIGNS, self._words)  # q + 128, unsigned
            program.add(np.right_shift, words[0, 0], _BY_BYTE, words[0, 1:])
        else:
            program.add(np.copyto, self._words, group.words)
        if self._bits == 6:
            nibbles = words[:, 0]
            program.add(np.right_shift, nibbles[0], np.uint16(4), nibbles[1])
            program.add(np.bitwise_and, nibbles, _NIBBLES, nibbles)
            program.add(np.right_shift, nibbles, np.uint16(8), words[:, 1])
        elif self._bits < 8:
            program.add(np.right_shift, words[0, 0], _BY_NIBBLE, words[0, 1:])
        if group.highs is not None:
            program.add(np.right_shift, group.highs, self._high_shifts, self._high_words)
        program.add(np.copyto, self._scales, group.scales)
        if group.supers is not None:
            program.add(np.copyto, self._supers, group.supers)

    def sum(self, program: Program, operand: Operand) -> None:
        """Append: integer sums of every row and block (and half), by lanes."""
        factors, sums = operand.factors(self._bits), self._sums
        halves, rows, lanes = sums.shape
        apart = self._products.reshape(halves, rows, -1, lanes)
        program.add(np.einsum, "hkti,hki->hti", self._shifted, factors.words, out=self._products)
        program.add(np.einsum, "hxvl->hxl", apart, out=sums)
        if factors.highs is not None:
            high = self._high_products
            by_half = high.reshape(rows, halves, lanes).transpose(1, 0, 2)
            by_tile = sums.reshape(halves, len(high), -1)
            program.add(np.einsum, "kti,ki->ti", self._high_shifted, factors.highs, out=high)
            program.add(np.add, sums, by_half, sums)
            program.add(np.add, by_tile, factors.lanes, by_tile)


def _word(fmt: Format) -> type[np.unsignedinteger[Any]]:
    return np.uint32 if fmt.bits == 8 else np.uint16
