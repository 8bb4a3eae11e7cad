"""Cut a source's matrix into the shards of a pack, a bounded number of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from picoedge.errors import UnsupportedError
from picoedge.kernels.arrays import F32, U8, Array
from picoedge.kernels.blocks import (
    BLOCK_COLS,
    FORMATS,
    SUPERBLOCK_COLS,
    TILE_ROWS,
    MatrixSpec,
    Quants,
    pack_planes,
)
from picoedge.store.pack.quantize import FORMAT_OF_BITS, narrowest_format, quantize
from picoedge.store.sources.tensors import SourceTensor

_CHUNK_WEIGHTS = 1 << 20  # a few MB of working memory; long enough for NumPy loops
_CHUNK_ROWS = 64  # at least, so that cutting wide rows into columns takes few calls
_SAMPLE_RUNS, _SAMPLE_ROWS = 8, 4

Write = Callable[[int, U8 | bytes], None]
"""(byte of the file, data)"""


@dataclass(frozen=True)
class MatrixTarget:
    """Placement of a matrix in `count` shards: first at byte `start`, then every `stride`."""

    spec: MatrixSpec
    start: int
    stride: int
    count: int


def choose_format(tensor: SourceTensor, shard_cols: int, bits: int) -> str:
    """Format to pack a matrix in: the source's own if it is ours, that of `bits` for floats, else
    the narrowest that shows no error (`quantize.narrowest_format`).

    Raises UnsupportedError where quantized columns would be cut inside a block.
    """
    encoding = tensor.encoding
    if shard_cols % BLOCK_COLS:
        if encoding.is_float:
            return "f32"
        raise UnsupportedError(
            f"tensor {tensor.name} is {encoding.name}, and its shards of {shard_cols} columns "
            f"are not multiples of {BLOCK_COLS}",
            "pack the model from its f16, bf16 or f32 form",
        )
    if encoding.format:
        return encoding.format
    return FORMAT_OF_BITS[bits] if encoding.is_float else narrowest_format(_sample(tensor))


def _sample(tensor: SourceTensor) -> F32:
    """Some rows, evenly spaced and the same every time, f32 [n, C]."""
    rows = min(_SAMPLE_ROWS, tensor.rows)
    starts = {i * (tensor.rows - rows) // (_SAMPLE_RUNS - 1) for i in range(_SAMPLE_RUNS)}
    return np.concatenate([tensor.floats(at, at + rows) for at in sorted(starts)])


def cut_rows(tensor: SourceTensor, place: MatrixTarget, write: Write) -> None:
    """Shard i gets rows [i * R, (i + 1) * R); rows past the tensor's end stay zero."""
    rows = place.spec.rows
    for shard in range(place.count):
        first = shard * rows
        last = min(first + rows, tensor.rows)
        for a, b in _chunks(first, last, tensor.cols):
            parts = _read(tensor, place.spec, a, b)
            _put(place.spec, parts, a - first, place.start + shard * place.stride, write)


def cut_columns(tensor: SourceTensor, place: MatrixTarget, write: Write) -> None:
    """Shard i gets columns [i * C, (i + 1) * C) of every row."""
    cols = place.spec.cols
    for a, b in _chunks(0, tensor.rows, tensor.cols):
        parts = _read(tensor, place.spec, a, b)
        for shard in range(place.count):
            cut = _columns(parts, place.spec, shard * cols)
            _put(place.spec, cut, a, place.start + shard * place.stride, write)


def _chunks(first: int, last: int, cols: int) -> Iterator[tuple[int, int]]:
    step = max(_CHUNK_ROWS, _CHUNK_WEIGHTS // cols // TILE_ROWS * TILE_ROWS)
    for a in range(first, last, step):
        yield a, min(a + step, last)


def _read(tensor: SourceTensor, spec: MatrixSpec, first: int, last: int) -> Quants | F32:
    fmt = spec.format
    if tensor.encoding.format == fmt.name:
        return tensor.quants(first, last)
    values = tensor.floats(first, last)
    return values if fmt.bits == 32 else quantize(values, fmt, tensor.name)


def _columns(parts: Quants | F32, spec: MatrixSpec, first: int) -> Quants | F32:
    last = first + spec.cols
    if not isinstance(parts, Quants):
        return parts[:, first:last]

    def cut(values: Array | None) -> Array | None:
        if values is None:
            return None
        per_block = parts.q.shape[1] // values.shape[1]
        return values[:, first // per_block : last // per_block]

    def cut_super(values: Array | None) -> Array | None:
        # Shards narrower than a superblock each get a copy of its superscale.
        if values is None:
            return None
        return values[:, np.arange(first, last, spec.superblock) // SUPERBLOCK_COLS]

    scales = cut(parts.scales)
    assert scales is not None
    return Quants(
        parts.q[:, first:last], scales, cut(parts.mins),
        cut_super(parts.superscales), cut_super(parts.supermins),
    )  # fmt: skip


def _put(
    spec: MatrixSpec, parts: Quants | F32, first_row: int, shard_start: int, write: Write
) -> None:
    """Write rows from `first_row` (a multiple of 16) on: one range of each plane."""
    n_rows = len(parts.q if isinstance(parts, Quants) else parts)
    chunk = MatrixSpec(spec.format, n_rows, spec.cols, 0, spec.superblock)
    data = np.zeros(chunk.nbytes, np.uint8)
    if isinstance(parts, Quants):
        pack_planes(chunk, parts, data)
    else:
        chunk.plane(data, "values")[...] = parts
    if n_rows == spec.rows:
        write(shard_start + spec.offset, data)
        return
    unit = TILE_ROWS if spec.format.bits < FORMATS["f32"].bits else 1
    for name, (at, shape, dtype) in chunk.planes.items():
        nbytes = int(np.prod(shape)) * dtype.itemsize
        target = spec.planes[name][0] + first_row // unit * (nbytes // shape[0])
        write(shard_start + target, data[at : at + nbytes])
