"""Sums on the wire: exact in as few bytes as that takes, or rounded where the user asked for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from picoedge.errors import ProtocolError, UsageError
from picoedge.kernels.arrays import F64
from picoedge.kernels.f48 import F48, NumpyF48
from picoedge.mesh.group.chunking import BLOCK  # values that share a scale
from picoedge.mesh.group.trimmed import Trimmed
from picoedge.mesh.transport.frames import Dtype

# What a board sends may be infinite or no number: that is the text's loss, and no warning of ours.
QUIET = np.errstate(over="ignore", invalid="ignore")


class Codec(Protocol):
    """Turns values, f64 [count], into bytes and back.

    `exact`: boards may go on with what they have. Otherwise they go on with what comes back, also
    the one that sent it, so that all have the same bits.
    """

    dtype: Dtype
    exact: bool

    def most_bytes(self, count: int) -> int:
        """Of that many values."""

    def encode(self, values: F64, into: memoryview) -> int:
        """Put the bytes there, where there is room for the most; gives how many they are."""

    def decode(self, body: memoryview, out: F64) -> F64:
        """The values, f64 [count], put into `out` or a read-only view of the body.

        Raises ProtocolError where the bytes are not those of as many as `out` has.
        """


@dataclass(frozen=True)
class Codecs:
    """How the parts of a sum travel, and how a whole one does."""

    part: Codec
    whole: Codec


class Plain:
    """One number after the other, in one of NumPy's types.

    `exact` where whoever reads them makes them that type anyway.
    """

    def __init__(self, dtype: Dtype, kind: str, *, exact: bool = False) -> None:
        self.dtype, self.exact, self._kind = dtype, exact, np.dtype(kind)
        self._largest = float(np.finfo(kind).max)

    def most_bytes(self, count: int) -> int:
        """Of that many values."""
        return count * self._kind.itemsize

    @QUIET
    def encode(self, values: F64, into: memoryview) -> int:
        """Put the bytes there. Where it is inexact, what is too large becomes the largest."""
        if not self.exact:
            values = np.clip(values, -self._largest, self._largest)
        np.frombuffer(into, self._kind, len(values))[...] = values
        return values.size * self._kind.itemsize

    @QUIET
    def decode(self, body: memoryview, out: F64) -> F64:
        """Put the values into out, f64 [count]. Raises ProtocolError."""
        _check(body, self.most_bytes(len(out)), len(out))
        out[...] = np.frombuffer(body, self._kind)
        return out


class Q8:
    """Blocks of 32 int8 with an f32 scale: all scales of the values, then all values."""

    dtype, exact = Dtype.Q8, False

    def most_bytes(self, count: int) -> int:
        """Of that many values."""
        return count + count // BLOCK * 4

    @QUIET
    def encode(self, values: F64, into: memoryview) -> int:
        """Put the bytes there."""
        blocks = values.reshape(-1, BLOCK)  # [count / 32, 32]
        scales = (np.abs(blocks).max(axis=1) / 127).astype("<f4")
        steps = scales.astype(np.float64)
        inverse = np.divide(1.0, steps, out=np.zeros(len(steps)), where=steps > 0)
        steps_of = np.rint(blocks * inverse[:, None]).clip(-127, 127)
        rounded = steps_of.astype(np.int8)  # where that is nonsense, so is the scale
        raw = scales.tobytes() + rounded.tobytes()
        into[: len(raw)] = raw
        return len(raw)

    @QUIET
    def decode(self, body: memoryview, out: F64) -> F64:
        """Put the values into out, f64 [count]. Raises ProtocolError."""
        _check(body, self.most_bytes(len(out)), len(out))
        blocks = len(out) // BLOCK
        scales = np.frombuffer(body, "<f4", blocks)
        values = np.frombuffer(body, np.int8, offset=4 * blocks).reshape(-1, BLOCK)
        np.multiply(values, scales[:, None], out=out.reshape(-1, BLOCK), dtype=np.float64)
        return out


def _check(body: memoryview, nbytes: int, count: int) -> None:
    if len(body) != nbytes:
        raise ProtocolError(f"{len(body)} bytes for {count} values, which take {nbytes}")


def codec_for(wire: str, hidden: int, trim: F48 | None = None) -> Codecs:
    """The codecs of `--wire f64|f32|f16|q8`. Raises UsageError where the model's width forbids.

    With f64 parts are exact, and so is what a sum is read as: f32. `trim`: NumPy's twin if None.
    """
    if wire == "f64":
        return Codecs(Trimmed(trim or NumpyF48()), Plain(Dtype.F32, "<f4", exact=True))
    if wire == "q8":
        if hidden % BLOCK:
            raise UsageError(f"--wire q8 needs a width in {BLOCK}s, this model's is {hidden}")
        return Codecs(Q8(), Q8())
    kinds = {"f32": (Dtype.F32, "<f4"), "f16": (Dtype.F16, "<f2")}
    if wire not in kinds:
        raise UsageError(f"--wire is f64, f32, f16 or q8, not {wire}")
    rounding = Plain(*kinds[wire])
    return Codecs(rounding, rounding)
