"""f48: an f64 stored in 6 bytes, with a list of the values whose low 16 bits are not zero.

The f64 sum of a few f32 numbers of like size has zeros in its low 16 bits nearly always: partial
sums between boards travel at 6 bytes a value, to the bit. Encoded, n values are

    u32 [n]  upper 32 bits of each
    u16 [n]  the next 16 bits of each
    EXCEPTION [m]  index and low 16 bits of each value whose low 16 bits are not zero
"""

from __future__ import annotations

import ctypes as ct
from dataclasses import dataclass

import numpy as np

from picoedge.kernels.arrays import F64, Array, Indices

F48_BYTES = 6  # of a value, exceptions not counted
EXCEPTION = np.dtype([("index", "<u4"), ("low", "<u2")])

_U16, _U32, _U64 = np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u8")
_HIGH_BYTES = 4
_LOW_BITS = np.uint64(0xFFFF)
_GROUP = 64  # values that are looked through at once for exceptions


class F48:
    """Encodes and decodes f64 values, with NumPy: the reference."""

    def encode(self, values: F64, out: memoryview, max_exceptions: int) -> int:
        """Encode values, f64 [n], into `out`; returns the number of exceptions.

        `out` has room for F48_BYTES * n + EXCEPTION.itemsize * max_exceptions bytes. Returns -1 if
        there are more exceptions than that; `out` then holds nothing of use.
        """
        count, indices = len(values), _exceptions(values)
        if len(indices) > max_exceptions:
            return -1
        words = values.view(_U16)
        np.frombuffer(out, _U32, count)[...] = values.view(_U32)[1::2]
        np.frombuffer(out, _U16, count, _HIGH_BYTES * count)[...] = words[1::4]
        listed = _list_of_exceptions(out, count, len(indices))
        listed["index"], listed["low"] = indices, words[4 * indices]
        return len(indices)

    def decode(self, body: memoryview, exceptions: int, out: F64) -> bool:
        """Decode into `out`, f64 [n]; False if the index of an exception is not below n."""
        count, words = len(out), out.view(_U16)
        out[...] = 0
        out.view(_U32)[1::2] = np.frombuffer(body, _U32, count)
        words[1::4] = np.frombuffer(body, _U16, count, _HIGH_BYTES * count)
        listed = _list_of_exceptions(body, count, exceptions)
        if (listed["index"] >= count).any():
            return False
        words[4 * listed["index"].astype(np.intp)] = listed["low"]
        return True


def _list_of_exceptions(body: memoryview, count: int, exceptions: int) -> Array:
    if not exceptions:  # NumPy takes no view of 0 bytes at the end of a buffer
        return np.empty(0, EXCEPTION)
    return np.frombuffer(body, EXCEPTION, exceptions, F48_BYTES * count)


def _exceptions(values: F64) -> Indices:
    """Indices of the values whose low 16 bits are not zero; groups without any are skipped."""
    bits = values.view(_U64)
    even = len(bits) - len(bits) % _GROUP
    groups = bits[:even].reshape(-1, _GROUP)
    some = np.flatnonzero(np.bitwise_or.reduce(groups, axis=1) & _LOW_BITS)
    row, column = np.nonzero(groups[some] & _LOW_BITS)
    rest = even + np.flatnonzero(bits[even:] & _LOW_BITS)
    return np.concatenate([some[row] * _GROUP + column, rest])


@dataclass(frozen=True, eq=False)
class NativeF48(F48):
    """The C file's, in a quarter of the time. `library` is what `native.open_library` returns."""

    library: ct.CDLL

    def encode(self, values: F64, out: memoryview, max_exceptions: int) -> int:
        """See `F48.encode`."""
        count = len(values)
        assert values.flags.c_contiguous
        assert len(out) >= F48_BYTES * count + EXCEPTION.itemsize * max_exceptions
        into = _address(out)
        return int(self.library.pe_f48_encode(values.ctypes.data, count, into, max_exceptions))

    def decode(self, body: memoryview, exceptions: int, out: F64) -> bool:
        """See `F48.decode`."""
        assert out.flags.c_contiguous
        assert len(body) >= F48_BYTES * len(out) + EXCEPTION.itemsize * exceptions
        return not self.library.pe_f48_decode(_address(body), len(out), exceptions, out.ctypes.data)


def _address(data: memoryview) -> int:
    return int(np.frombuffer(data, np.uint8).ctypes.data)
