"""Sums on the wire: f64 as they are, or smaller and rounded where the user asked for that."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from picoedge.errors import UsageError
from picoedge.mesh.wire import Dtype

F64 = npt.NDArray[np.float64]
BLOCK = 32  # values that share a scale
# What a board sends may be infinite or no number: that is the text's loss, and no warning of ours.
QUIET = np.errstate(over="ignore", invalid="ignore")


class Codec(Protocol):
    """Turns rows of sums, f64 [n, hidden], into bytes and back.

    `exact`: what comes back is what went in. Otherwise boards go on with what comes back, also
    the one that sent it, so that all have the same bits.
    """

    dtype: Dtype
    exact: bool

    def row_bytes(self, hidden: int) -> int:
        """Bytes of one row."""

    def encode(self, rows: F64, into: memoryview) -> None:
        """Put the bytes of some rows where there is just room for them."""

    def decode(self, body: memoryview, hidden: int) -> F64:
        """The rows, f64 [n, hidden], read-only where they are a view. The length was checked."""


class Plain:
    """One number after the other, in one of NumPy's types."""

    def __init__(self, dtype: Dtype, kind: str) -> None:
        self.dtype, self.exact, self._kind = dtype, dtype is Dtype.F64, np.dtype(kind)
        self._largest = float(np.finfo(kind).max)

    def row_bytes(self, hidden: int) -> int:
        """Bytes of one row."""
        return hidden * self._kind.itemsize

    @QUIET
    def encode(self, rows: F64, into: memoryview) -> None:
        """Put the bytes there. What is too large for the type becomes the largest it has."""
        if not self.exact:
            rows = np.clip(rows, -self._largest, self._largest)
        np.frombuffer(into, self._kind).reshape(rows.shape)[...] = rows

    @QUIET
    def decode(self, body: memoryview, hidden: int) -> F64:
        """The rows, f64 [n, hidden]."""
        rows = np.frombuffer(body, self._kind).reshape(-1, hidden)
        return rows.astype(np.float64, copy=False)


class Q8:
    """Blocks of 32 int8 with an f32 scale: all scales of the rows, then all values."""

    dtype, exact = Dtype.Q8, False

    def row_bytes(self, hidden: int) -> int:
        """Bytes of one row."""
        return hidden + hidden // BLOCK * 4

    @QUIET
    def encode(self, rows: F64, into: memoryview) -> None:
        """Put the bytes of some rows there."""
        blocks = rows.reshape(-1, BLOCK)  # [n * hidden / 32, 32]
        scales = (np.abs(blocks).max(axis=1) / 127).astype("<f4")
        steps = scales.astype(np.float64)
        inverse = np.divide(1.0, steps, out=np.zeros(len(steps)), where=steps > 0)
        values = np.rint(blocks * inverse[:, None]).clip(-127, 127)
        rounded = values.astype(np.int8)  # where that is nonsense, so is the scale
        into[:] = scales.tobytes() + rounded.tobytes()

    @QUIET
    def decode(self, body: memoryview, hidden: int) -> F64:
        """The rows, f64 [n, hidden]."""
        blocks = len(body) // (BLOCK + 4)
        scales = np.frombuffer(body, "<f4", blocks)
        values = np.frombuffer(body, np.int8, offset=4 * blocks).reshape(-1, BLOCK)
        rows: F64 = np.multiply(values, scales[:, None], dtype=np.float64)
        return rows.reshape(-1, hidden)


def codec_for(wire: str, hidden: int) -> Codec:
    """The codec of `--wire f64|f32|f16|q8`. Raises UsageError where the model's width forbids."""
    if wire == "q8":
        if hidden % BLOCK:
            raise UsageError(f"--wire q8 needs a width in 32s, this model's is {hidden}")
        return Q8()
    kinds = {"f64": (Dtype.F64, "<f8"), "f32": (Dtype.F32, "<f4"), "f16": (Dtype.F16, "<f2")}
    if wire not in kinds:
        raise UsageError(f"--wire is f64, f32, f16 or q8, not {wire}")
    return Plain(*kinds[wire])
