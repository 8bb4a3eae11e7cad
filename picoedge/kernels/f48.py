"""f64 numbers whose last 16 bits are nearly always zero, without those: both twins of that.

A sum of a few f32 numbers of like size is one. Where boards add up their parts, it travels so.

    upper 32 bits of each, then the next 16 of each, then an ODD for each that has more
"""

from __future__ import annotations

import ctypes as ct
from typing import Protocol

import numpy as np

from picoedge.kernels.arrays import F64, Indices

U8, U16, U32, U64 = np.dtype("u1"), np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u8")
ODD = np.dtype([("index", "<u4"), ("low", "<u2")])  # a number that has more, and its last 16 bits
HIGH, KEPT = 4, 6  # bytes of a number, from its upper end: of its first word, of all
LOW = np.uint64(0xFFFF)
TOGETHER = 64  # numbers that are looked through at once


class Trim(Protocol):
    """Takes numbers, f64 [count], apart and puts them together again, to the bit."""

    def apart(self, values: F64, into: memoryview, most_odd: int) -> int:
        """Put them there, where there is room; gives how many are odd, -1 if more than the most."""

    def together(self, body: memoryview, odd: int, out: F64) -> bool:
        """The reverse; False where an odd one is said to be beyond the last."""


class NumpyTrim:
    """The definition."""

    def apart(self, values: F64, into: memoryview, most_odd: int) -> int:
        """See `Trim.apart`."""
        count, odd = len(values), _odd(values)
        if len(odd) > most_odd:
            return -1
        words = values.view(U16)
        np.frombuffer(into, U32, count)[...] = values.view(U32)[1::2]
        np.frombuffer(into, U16, count, HIGH * count)[...] = words[1::4]
        told = np.frombuffer(into, ODD, len(odd), KEPT * count) if len(odd) else np.empty(0, ODD)
        told["index"], told["low"] = odd, words[4 * odd]
        return len(odd)

    def together(self, body: memoryview, odd: int, out: F64) -> bool:
        """See `Trim.together`."""
        count, words = len(out), out.view(U16)
        out[...] = 0
        out.view(U32)[1::2] = np.frombuffer(body, U32, count)
        words[1::4] = np.frombuffer(body, U16, count, HIGH * count)
        told = np.frombuffer(body, ODD, odd, KEPT * count) if odd else np.empty(0, ODD)
        if (told["index"] >= count).any():
            return False
        words[4 * told["index"].astype(np.intp)] = told["low"]
        return True


def _odd(values: F64) -> Indices:
    """Which numbers have one of their last 16 bits: few, so blocks without any are passed over."""
    bits = values.view(U64)
    even = len(bits) - len(bits) % TOGETHER
    blocks = bits[:even].reshape(-1, TOGETHER)
    some = np.flatnonzero(np.bitwise_or.reduce(blocks, axis=1) & LOW)
    row, column = np.nonzero(blocks[some] & LOW)
    return np.concatenate([some[row] * TOGETHER + column, even + np.flatnonzero(bits[even:] & LOW)])


class NativeTrim:
    """The C file's, in a quarter of the time."""

    def __init__(self, library: ct.CDLL) -> None:
        self._lib = library

    def apart(self, values: F64, into: memoryview, most_odd: int) -> int:
        """See `Trim.apart`."""
        count = len(values)
        assert values.flags.c_contiguous
        assert len(into) >= KEPT * count + ODD.itemsize * most_odd
        return int(self._lib.pe_apart(values.ctypes.data, count, _address(into), most_odd))

    def together(self, body: memoryview, odd: int, out: F64) -> bool:
        """See `Trim.together`."""
        assert out.flags.c_contiguous
        assert len(body) >= KEPT * len(out) + ODD.itemsize * odd
        failed = self._lib.pe_together(_address(body), len(out), odd, out.ctypes.data)
        return not failed


def _address(data: memoryview) -> int:
    return int(np.frombuffer(data, U8).ctypes.data)
