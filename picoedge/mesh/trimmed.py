"""Exact parts in 6 bytes a value instead of 8.

A part is the f64 sum of a few f32 numbers of like size: its last 16 bits are nearly always zero.
They are left out, and told apart for the few values that have some.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from picoedge.errors import ProtocolError
from picoedge.mesh.shares import LONG, LONG_BYTES
from picoedge.mesh.wire import Dtype

F64 = npt.NDArray[np.float64]
U16, U32, U64, WHOLE = np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u8"), np.dtype("<f8")
ODD = np.dtype([("index", "<u4"), ("low", "<u2")])  # a value that has more, and its last 16 bits
HIGH, KEPT = 4, LONG_BYTES  # bytes of a value, from its upper end: of its first word, of all
LOW = np.uint64(0xFFFF)
TOGETHER = 64  # values that are looked through at once


class Trimmed:
    """The upper 32 bits of all values, then the next 16, then an ODD for each that has more.

    The values as they are where they are few, or where so many are odd that nothing is gained.
    """

    dtype, exact = Dtype.F64, True

    def most_bytes(self, count: int) -> int:
        """Of that many values."""
        return 8 * count

    def encode(self, values: F64, into: memoryview) -> int:
        """Put the bytes of values, f64 [count], there; gives how many they are."""
        count = len(values)
        odd = _odd(values) if count >= LONG else None
        if odd is None or KEPT * count + len(odd) * ODD.itemsize >= 8 * count:
            np.frombuffer(into, WHOLE, count)[...] = values
            return 8 * count
        words = values.view(U16)
        np.frombuffer(into, U32, count)[...] = values.view(U32)[1::2]
        np.frombuffer(into, U16, count, HIGH * count)[...] = words[1::4]
        if len(odd):
            told = np.frombuffer(into, ODD, len(odd), KEPT * count)
            told["index"], told["low"] = odd, words[4 * odd]
        return KEPT * count + len(odd) * ODD.itemsize

    def decode(self, body: memoryview, out: F64) -> F64:
        """The values, in out, f64 [count], or a read-only view. Raises ProtocolError."""
        count = len(out)
        if len(body) == 8 * count:
            return np.frombuffer(body, WHOLE)
        odd, rest = divmod(len(body) - KEPT * count, ODD.itemsize)
        if rest or not 0 <= odd <= count:
            raise ProtocolError(f"{len(body)} bytes for {count} values")
        out[...] = 0
        out.view(U32)[1::2] = np.frombuffer(body, U32, count)
        out.view(U16)[1::4] = np.frombuffer(body, U16, count, HIGH * count)
        if odd:
            _put(np.frombuffer(body, ODD, odd, KEPT * count), out)
        return out


def _odd(values: F64) -> npt.NDArray[np.intp]:
    """Which values have one of their last 16 bits: few, so blocks without any are passed over."""
    bits = values.view(U64)
    even = len(bits) - len(bits) % TOGETHER
    blocks = bits[:even].reshape(-1, TOGETHER)
    some = np.flatnonzero(np.bitwise_or.reduce(blocks, axis=1) & LOW)
    row, column = np.nonzero(blocks[some] & LOW)
    return np.concatenate([some[row] * TOGETHER + column, even + np.flatnonzero(bits[even:] & LOW)])


def _put(told: npt.NDArray[np.void], values: F64) -> None:
    index = told["index"]
    if index.max() >= len(values):
        raise ProtocolError(f"value {index.max()} of {len(values)}")
    values.view(U16)[4 * index.astype(np.intp)] = told["low"]
