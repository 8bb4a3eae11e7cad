"""Encodings of a sum's values: lossless in few bytes, or rounded if the user asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from picoedge.errors import ProtocolError, UsageError
from picoedge.kernels.arrays import F64
from picoedge.kernels.f48 import EXCEPTION, F48, F48_BYTES
from picoedge.mesh.transport.frames import Dtype

# A peer may send infinities and NaN: they spoil its text, and are no warning of ours.
QUIET = np.errstate(over="ignore", invalid="ignore")
_F64 = np.dtype("<f8")
SUM_VALUE_BYTES = 4  # of one value of a lossless sum: f32, as its readers convert it anyway
F48_FROM = 8192  # values: of shorter parts f48 costs more time than encrypting all 8 bytes
Q8_BLOCK = 32  # values that are never cut apart: they share a scale in q8
# Cost of a second hop's messages, in bytes that the link could carry meanwhile (measured).
HOP_BYTES = 24 << 10


def part_bytes(values: int) -> int:
    """Bytes of one value of a lossless part of `values` values."""
    return F48_BYTES if values >= F48_FROM else _F64.itemsize


def is_cut(values: int, contributors: int) -> bool:
    """Whether that many ranks, each linked to all others, cut a sum of `values` into chunks.

    Always with a single contributor: it owns all, and its part is sent as the sum.
    """
    uncut = part_bytes(values)
    saved = uncut - (uncut + SUM_VALUE_BYTES) / contributors
    return contributors == 1 or values * saved > HOP_BYTES


class Codec(Protocol):
    """Turns values, f64 [n], into bytes and back.

    With a codec that is not `lossless` the sender, too, continues with the decoded values, so that
    all ranks have the same bits.
    """

    dtype: Dtype
    lossless: bool

    def encode(self, values: F64, out: memoryview) -> int:
        """Encode into `out`, which has room for 8 bytes a value; returns the bytes used."""

    def decode(self, body: memoryview, out: F64) -> F64:
        """The values, f64 [n]: in `out`, or a read-only view of the body.

        Raises ProtocolError if these are not the bytes of n = len(out) values.
        """


@dataclass(frozen=True)
class Codecs:
    """One codec for the parts of a sum, one for the whole sum."""

    part: Codec
    whole: Codec


class F48Codec:
    """f64 stored in 6 bytes, with a list of the values whose low 16 bits are not zero.

    Falls back to 8 bytes for short arrays, or when that list would be longer than the saving.
    """

    dtype, lossless = Dtype.F64, True

    def __init__(self, f48: F48) -> None:
        self._f48 = f48

    def encode(self, values: F64, out: memoryview) -> int:
        count = len(values)
        if count >= F48_FROM:
            worthwhile = ((8 - F48_BYTES) * count - 1) // EXCEPTION.itemsize
            exceptions = self._f48.encode(values, out, worthwhile)
            if exceptions >= 0:
                return F48_BYTES * count + exceptions * EXCEPTION.itemsize
        np.frombuffer(out, _F64, count)[...] = values
        return 8 * count

    def decode(self, body: memoryview, out: F64) -> F64:
        count = len(out)
        if len(body) == 8 * count:
            return np.frombuffer(body, _F64)
        exceptions, rest = divmod(len(body) - F48_BYTES * count, EXCEPTION.itemsize)
        if rest or not 0 <= exceptions <= count:
            raise ProtocolError(f"{len(body)} bytes for {count} values")
        if not self._f48.decode(body, exceptions, out):
            raise ProtocolError(f"a value beyond the {count} there are")
        return out


class FloatCodec:
    """Each value in one of NumPy's float types; `lossless` if readers convert to it anyway."""

    def __init__(self, dtype: Dtype, kind: str, *, lossless: bool = False) -> None:
        self.dtype, self.lossless, self._kind = dtype, lossless, np.dtype(kind)
        self._largest = float(np.finfo(kind).max)

    @QUIET
    def encode(self, values: F64, out: memoryview) -> int:
        """A lossy codec clips values to its largest number."""
        if not self.lossless:
            values = np.clip(values, -self._largest, self._largest)
        np.frombuffer(out, self._kind, len(values))[...] = values
        return values.size * self._kind.itemsize

    @QUIET
    def decode(self, body: memoryview, out: F64) -> F64:
        _check(body, len(out) * self._kind.itemsize, len(out))
        out[...] = np.frombuffer(body, self._kind)
        return out


class Q8Codec:
    """Blocks of 32 int8 with an f32 scale: all scales of the values, then all values."""

    dtype, lossless = Dtype.Q8, False

    @QUIET
    def encode(self, values: F64, out: memoryview) -> int:
        blocks = values.reshape(-1, Q8_BLOCK)  # [count / 32, 32]
        scales = (np.abs(blocks).max(axis=1) / 127).astype("<f4")
        steps = scales.astype(np.float64)
        inverse = np.divide(1.0, steps, out=np.zeros(len(steps)), where=steps > 0)
        steps_of = np.rint(blocks * inverse[:, None]).clip(-127, 127)
        rounded = steps_of.astype(np.int8)  # of NaN and infinity any: their scale is no number
        raw = scales.tobytes() + rounded.tobytes()
        out[: len(raw)] = raw
        return len(raw)

    @QUIET
    def decode(self, body: memoryview, out: F64) -> F64:
        blocks = len(out) // Q8_BLOCK
        _check(body, len(out) + 4 * blocks, len(out))
        scales = np.frombuffer(body, "<f4", blocks)
        values = np.frombuffer(body, np.int8, offset=4 * blocks).reshape(-1, Q8_BLOCK)
        np.multiply(values, scales[:, None], out=out.reshape(-1, Q8_BLOCK), dtype=np.float64)
        return out


def _check(body: memoryview, nbytes: int, count: int) -> None:
    if len(body) != nbytes:
        raise ProtocolError(f"{len(body)} bytes for {count} values, which take {nbytes}")


def codecs_for(wire: str, width: int, f48: F48 | None = None) -> Codecs:
    """The codecs of `--wire f64|f32|f16|q8` for rows of `width` values.

    With f64 all is lossless: parts are f64, and a sum is read as f32. `f48`: NumPy's if None.
    Raises UsageError if the width does not fit the codec.
    """
    if wire == "f64":
        return Codecs(F48Codec(f48 or F48()), FloatCodec(Dtype.F32, "<f4", lossless=True))
    if wire == "q8":
        if width % Q8_BLOCK:
            raise UsageError(f"--wire q8 needs a width in {Q8_BLOCK}s, this model's is {width}")
        return Codecs(Q8Codec(), Q8Codec())
    kinds = {"f32": (Dtype.F32, "<f4"), "f16": (Dtype.F16, "<f2")}
    if wire not in kinds:
        raise UsageError(f"--wire is f64, f32, f16 or q8, not {wire}")
    rounding = FloatCodec(*kinds[wire])
    return Codecs(rounding, rounding)
