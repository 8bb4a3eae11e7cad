"""Exact parts in 6 bytes a value instead of 8.

A part is the f64 sum of a few f32 numbers of like size: its last 16 bits are nearly always zero.
They are left out, and told apart for the few values that have some (`kernels/f48.py`).
"""

from __future__ import annotations

import numpy as np

from picoedge.errors import ProtocolError
from picoedge.kernels.arrays import F64
from picoedge.kernels.f48 import EXCEPTION, F48, F48_BYTES
from picoedge.mesh.group.chunking import LONG
from picoedge.mesh.transport.frames import Dtype

WHOLE = np.dtype("<f8")


class Trimmed:
    """The values as they are where they are few, or so many are odd that nothing is gained."""

    dtype, exact = Dtype.F64, True

    def __init__(self, trim: F48) -> None:
        self._trim = trim

    def most_bytes(self, count: int) -> int:
        """Of that many values."""
        return 8 * count

    def encode(self, values: F64, into: memoryview) -> int:
        """Put the bytes of values, f64 [count], there; gives how many they are."""
        count = len(values)
        worth = ((8 - F48_BYTES) * count - 1) // EXCEPTION.itemsize
        odd = self._trim.encode(values, into, worth) if count >= LONG else -1
        if odd < 0:
            np.frombuffer(into, WHOLE, count)[...] = values
            return 8 * count
        return F48_BYTES * count + odd * EXCEPTION.itemsize

    def decode(self, body: memoryview, out: F64) -> F64:
        """The values, in out, f64 [count], or a read-only view. Raises ProtocolError."""
        count = len(out)
        if len(body) == 8 * count:
            return np.frombuffer(body, WHOLE)
        odd, rest = divmod(len(body) - F48_BYTES * count, EXCEPTION.itemsize)
        if rest or not 0 <= odd <= count:
            raise ProtocolError(f"{len(body)} bytes for {count} values")
        if not self._trim.decode(body, odd, out):
            raise ProtocolError(f"a value beyond the {count} there are")
        return out
