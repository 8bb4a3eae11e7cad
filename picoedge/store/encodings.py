"""Encodings of weights in source files and of embedding rows in packs.

Named after ggml's tensor types and safetensors' dtypes (F32, F16, BF16 are both). Block layouts
follow the ggml type definitions (`block_q4_K` and so on). All but the codebook types convert
losslessly to our formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from picoedge.errors import ModelError, UnsupportedError
from picoedge.kernels.arrays import F32, U8, Array
from picoedge.kernels.blocks import FORMATS, MatrixSpec, Quants, dequantize

_F16 = np.dtype("<f2")
_BITS = np.arange(8, dtype=np.uint8)


@dataclass(frozen=True)
class Encoding:
    """Blocks of `elements` weights in `nbytes` bytes; `format` of ours holds them exactly.

    `format` is "" for floats, and for codebook types, which must be requantized.
    """

    name: str
    elements: int
    nbytes: int
    format: str = ""
    unpack: Callable[[U8], Quants] | None = None

    @property
    def is_float(self) -> bool:
        """Whether weights are plain numbers, not blocks."""
        return self.elements == 1

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row. Raises ModelError where `cols` is not a multiple of the block."""
        if cols % self.elements:
            raise ModelError(f"rows of {cols} do not fit {self.name} blocks of {self.elements}")
        return cols // self.elements * self.nbytes

    def quants(self, raw: U8) -> Quants:
        """Quants of u8 [n, row bytes]; only where `format` is not empty."""
        assert self.unpack is not None
        return self.unpack(raw.reshape(len(raw), -1, self.nbytes))

    def floats(self, raw: U8) -> F32:
        """f32 [n, cols] of u8 [n, row bytes]."""
        with np.errstate(all="ignore"):  # the caller refuses NaN and infinity
            if self.name == "F32":
                return raw.view("<f4")
            if self.name == "F16":
                return raw.view(_F16).astype(np.float32)
            if self.name == "BF16":
                return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
            return self._exact_floats(raw) if self.format else _library_floats(self.name, raw)

    def _exact_floats(self, raw: U8) -> F32:
        cols = raw.shape[1] // self.nbytes * self.elements
        fmt = FORMATS[self.format]
        spec = MatrixSpec(fmt, len(raw), cols, 0, self.elements if fmt.superblocks else 0)
        return dequantize(spec, self.quants(raw))


def _library_floats(name: str, raw: U8) -> F32:
    # Heavy to import; needed only for types without an exact format.
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize as library_dequantize

    try:
        values = library_dequantize(raw, GGMLQuantizationType[name])
    except (KeyError, NotImplementedError) as error:
        raise UnsupportedError(
            f"this version of the gguf library does not dequantize {name}", "pip install -U gguf"
        ) from error
    return np.asarray(values, dtype=np.float32).reshape(len(raw), -1)


def _halves(blocks: U8, at: int) -> U8:
    """[n, B, 32] quants of the 16 bytes from `at`, low nibbles first."""
    packed = blocks[:, :, at : at + 16]
    return np.concatenate([packed & 15, packed >> 4], axis=2)


def _f16(blocks: U8, at: int) -> Array:
    return np.ascontiguousarray(blocks[:, :, at : at + 2]).view(_F16)[:, :, 0]


def _rows(q: U8, n: int) -> U8:
    return q.reshape(n, -1)


def _nibble_blocks(*, minimum: bool, fifth_bits: bool) -> Callable[[U8], Quants]:
    """Unpacker of Q4_0, Q4_1, Q5_0, Q5_1: f16 scale, f16 minimum, fifth bits, nibbles."""

    def unpack(blocks: U8) -> Quants:
        at = 4 if minimum else 2
        q = _halves(blocks, at + 4 if fifth_bits else at)
        if fifth_bits:  # bit i of a 32-bit word is the fifth bit of quant i
            q |= np.unpackbits(blocks[:, :, at : at + 4], axis=2, bitorder="little") << np.uint8(4)
        mins = _f16(blocks, 2) if minimum else None
        return Quants(_rows(q, len(blocks)), _f16(blocks, 0), mins)

    return unpack


def _q8_0(blocks: U8) -> Quants:
    return Quants(_rows(blocks[:, :, 2:], len(blocks)), _f16(blocks, 0))


def _k_scales(blocks: U8) -> tuple[U8, U8]:
    """Scales and minimums, u8 [n, 8 S] each, of the 12 packed bytes from byte 4."""
    n = len(blocks)
    low, middle, high = (blocks[:, :, i : i + 4] for i in (4, 8, 12))
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 2) & 48)], axis=2)
    mins = np.concatenate([middle & 63, (high >> 4) | ((middle >> 2) & 48)], axis=2)
    return scales.reshape(n, -1), mins.reshape(n, -1)


def _k_nibbles(blocks: U8, at: int) -> U8:
    """[n, S, 8, 32] of 128 bytes: each 32 bytes hold two sub-blocks, low nibbles first."""
    n, s = blocks.shape[:2]
    packed = blocks[:, :, at : at + 128].reshape(n, s, 4, 1, 32)
    q = np.empty((n, s, 4, 2, 32), np.uint8)
    np.bitwise_and(packed[:, :, :, 0], 15, out=q[:, :, :, 0])
    np.right_shift(packed[:, :, :, 0], 4, out=q[:, :, :, 1])
    return q.reshape(n, s, 8, 32)


def _q4_k(blocks: U8) -> Quants:
    scales, mins = _k_scales(blocks)
    q = _rows(_k_nibbles(blocks, 16), len(blocks))
    return Quants(q, scales, mins, _f16(blocks, 0), _f16(blocks, 2))


def _q5_k(blocks: U8) -> Quants:
    scales, mins = _k_scales(blocks)
    q = _k_nibbles(blocks, 48)
    highs = blocks[:, :, None, 16:48] >> _BITS[:, None]  # bit i belongs to sub-block i
    q |= (highs & 1) << 4
    return Quants(_rows(q, len(blocks)), scales, mins, _f16(blocks, 0), _f16(blocks, 2))


def _q6_k(blocks: U8) -> Quants:
    n, s = blocks.shape[:2]
    packed = blocks[:, :, :128].reshape(n, s, 2, 1, 64)
    low = np.concatenate([packed & 15, packed >> 4], axis=3).reshape(n, s, 2, 4, 32)
    pairs = blocks[:, :, 128:192].reshape(n, s, 2, 1, 32)
    q = low | (((pairs >> (2 * _BITS[:4, None])) & 3) << 4)
    scales = np.ascontiguousarray(blocks[:, :, 192:208]).view(np.int8).reshape(n, -1)
    return Quants(_rows(q, n), scales, None, _f16(blocks, 208))


def _q3_k(blocks: U8) -> Quants:
    """3 bits and a scale per 16 weights: exact in q6k, which has the same superblocks."""
    n, s = blocks.shape[:2]
    pairs = blocks[:, :, 32:96].reshape(n, s, 2, 1, 32) >> (2 * _BITS[:4, None])
    highs = (blocks[:, :, None, :32] >> _BITS[:, None]).reshape(n, s, 2, 4, 32)
    q = (pairs & 3) + ((highs & 1) << 2) + np.uint8(32 - 4)
    low = blocks[:, :, 96:104].reshape(n, s, 1, 8) >> np.array([[0], [4]], np.uint8)
    high = blocks[:, :, 104:108].reshape(n, s, 1, 4) >> (2 * _BITS[:4, None])
    six = (low & 15).reshape(n, s, 16) | ((high & 3) << 4).reshape(n, s, 16)
    scales = six.astype(np.int8) - np.int8(32)
    return Quants(_rows(q, n), scales.reshape(n, -1), None, _f16(blocks, 108))


def _table() -> dict[str, Encoding]:
    exact = [
        Encoding("Q4_0", 32, 18, "q4", _nibble_blocks(minimum=False, fifth_bits=False)),
        Encoding("Q4_1", 32, 20, "q4m", _nibble_blocks(minimum=True, fifth_bits=False)),
        Encoding("Q5_0", 32, 22, "q5", _nibble_blocks(minimum=False, fifth_bits=True)),
        Encoding("Q5_1", 32, 24, "q5m", _nibble_blocks(minimum=True, fifth_bits=True)),
        Encoding("Q8_0", 32, 34, "q8", _q8_0),
        Encoding("Q3_K", 256, 110, "q6k", _q3_k),
        Encoding("Q4_K", 256, 144, "q4k", _q4_k),
        Encoding("Q5_K", 256, 176, "q5k", _q5_k),
        Encoding("Q6_K", 256, 210, "q6k", _q6_k),
    ]
    floats = [Encoding("F32", 1, 4), Encoding("F16", 1, 2), Encoding("BF16", 1, 2)]
    requantized = [
        ("Q2_K", 256, 84), ("IQ2_XXS", 256, 66), ("IQ2_XS", 256, 74),
        ("IQ2_S", 256, 82), ("IQ3_XXS", 256, 98), ("IQ3_S", 256, 110), ("IQ1_S", 256, 50),
        ("IQ1_M", 256, 56), ("IQ4_NL", 32, 18), ("IQ4_XS", 256, 136), ("TQ1_0", 256, 54),
        ("TQ2_0", 256, 66), ("MXFP4", 32, 17), ("NVFP4", 64, 36),
    ]  # fmt: skip
    inexact = [Encoding(name, elements, nbytes) for name, elements, nbytes in requantized]
    return {e.name: e for e in (*exact, *floats, *inexact)}


ENCODINGS = _table()

# Numbers of ggml's tensor types.
_GGML_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M",
    30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip


def ggml_encoding(number: int, tensor: str) -> Encoding:
    """Encoding of a GGUF tensor type. Raises UnsupportedError naming tensor and type."""
    name = _GGML_NAMES.get(number, f"number {number}")
    encoding = ENCODINGS.get(name)
    if encoding is None:
        raise UnsupportedError(
            f"tensor {tensor} has type {name}, which is not supported",
            f"supported: {', '.join(ENCODINGS)}",
        )
    return encoding


@dataclass(frozen=True, eq=False)
class RowEmbedding:
    """Rows of a memory-mapped file, u8 [>= vocabulary, row bytes]."""

    encoding: Encoding
    rows: U8

    def gather(self, ids: Sequence[int], out: F32) -> None:
        """out[i] = f32 row ids[i]; ids must be valid."""
        out[: len(ids)] = self.encoding.floats(self.rows[np.asarray(ids, dtype=np.intp)])
