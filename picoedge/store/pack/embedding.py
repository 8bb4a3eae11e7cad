"""The rows of an untied embedding: kept as they come, looked up one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from picoedge.kernels.arrays import F32, U8
from picoedge.kernels.blocks import BLOCK_COLS, FORMATS, Quants
from picoedge.store.pack.quantize import quantize
from picoedge.store.sources.encodings import ENCODINGS, Encoding
from picoedge.store.sources.tensors import SourceTensor


def embed_encoding(tensor: SourceTensor, bits: int) -> Encoding:
    """How the rows are stored: the source's own blocks where they can be read back, else Q8_0.

    F32 where `bits` asks for it or rows do not fill blocks.
    """
    if tensor.encoding.format:
        return tensor.encoding
    whole = tensor.cols % BLOCK_COLS == 0 and not (tensor.encoding.is_float and bits == 32)
    return ENCODINGS["Q8_0" if whole else "F32"]


def encode_rows(tensor: SourceTensor, encoding: Encoding, first: int, last: int) -> U8:
    """Rows [first, last) in `encoding`, u8 [n, row bytes]; raises ModelError on NaN or infinity."""
    if encoding.format and encoding == tensor.encoding:
        tensor.quants(first, last)  # for its checks
        return tensor.raw(first, last)
    values = tensor.floats(first, last)
    if encoding.is_float:
        return np.ascontiguousarray(values, "<f4").view(np.uint8)
    return _q8_0_rows(quantize(values, FORMATS["q8"], tensor.name))


def _q8_0_rows(parts: Quants) -> U8:
    n = len(parts.q)
    scales = parts.scales.reshape(n, -1, 1).view(np.uint8)
    return np.concatenate([scales, parts.q.reshape(n, -1, BLOCK_COLS)], axis=2).reshape(n, -1)


@dataclass(frozen=True, eq=False)
class RowEmbedding:
    """Row-major rows of a memory-mapped file, u8 [>= vocabulary, row bytes]."""

    encoding: Encoding
    rows: U8

    def gather(self, ids: Sequence[int], out: F32) -> None:
        """out[i] = f32 row ids[i]; ids are checked before."""
        out[: len(ids)] = self.encoding.floats(self.rows[np.asarray(ids, dtype=np.intp)])
