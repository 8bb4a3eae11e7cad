"""Sums of gradients whose bits depend on no order: integers of one unit.

A micro-batch's gradient g becomes rint(g / unit), to nearest even; integers are added, and the sum
is rounded to f32 once. The unit is 2^-36 = 1.5e-11: beside AdamW's epsilon of 1e-8 an error of half
a unit is lost in the noise. Which thread or board had which micro-batch changes no bit.
"""

from __future__ import annotations

import ctypes as ct
import math
from ctypes import c_int32

import numpy as np

from picoedge.errors import PicoedgeError
from picoedge.kernels.arrays import F32
from picoedge.kernels.training_abi import SUM_BLOCK, SumsRecord, bind_training

EXPONENT = 36  # the unit is 2^-36
MICRO_BATCHES = 64  # of a step, at most
_FIRST_ROWS = 64
_WIDEST = 56  # bits of an integer, as in training.c
_LARGEST = 2.0 ** (_WIDEST - EXPONENT)  # values are below it


class NotFiniteError(PicoedgeError):
    """A value of a gradient that is infinite, no number, or too large for the sums.

    at: its number; what: it is, for people.
    """

    def __init__(self, at: int, what: str) -> None:
        super().__init__(f"value {at} of the gradient is {what}")
        self.at, self.what = at, what

    @classmethod
    def of(cls, gradient: F32, start: int) -> NotFiniteError:
        """The error of the first value that is not finite, else of the largest, from `start` on."""
        values = gradient[start:]
        wrong = ~np.isfinite(values)
        at = int(np.argmax(wrong if wrong.any() else np.abs(values)))
        value = float(values[at])
        what = (
            "infinite" if math.isinf(value) else f"{value:.3g}: sums take less than {_LARGEST:.3g}"
        )
        return cls(start + at, "no number" if math.isnan(value) else what)


def padded(count: int) -> int:
    """`count` values in whole blocks."""
    return -(-count // SUM_BLOCK) * SUM_BLOCK


class GradientSums:
    """The sum of up to `micro_batches` gradients of `n` values, a multiple of SUM_BLOCK."""

    def __init__(self, library: ct.CDLL, n: int, micro_batches: int) -> None:
        assert n % SUM_BLOCK == 0
        assert 0 < micro_batches <= MICRO_BATCHES
        self._lib = library
        bind_training(library)
        self._plane, self._rows = np.zeros(n, np.int32), np.full(n // SUM_BLOCK, -1, np.int32)
        self._wide = np.empty((_FIRST_ROWS, SUM_BLOCK), np.int64)
        narrow = 31 - (micro_batches - 1).bit_length()
        self._record = SumsRecord(exponent=EXPONENT, narrow=narrow)
        self._bind()

    def _bind(self) -> None:
        record = self._record
        record.plane, record.rows = self._plane.ctypes.data, self._rows.ctypes.data
        record.wide, record.capacity = self._wide.ctypes.data, len(self._wide)

    def add(self, gradient: F32) -> None:
        """Add a micro-batch's gradient. Raises NotFiniteError; the sum is then of no use."""
        assert gradient.shape == self._plane.shape
        at, bad = 0, c_int32()
        while at < len(self._rows):
            at = self._lib.pe_sums_add(
                ct.byref(self._record), gradient.ctypes.data, len(gradient), at, ct.byref(bad)
            )
            if bad.value:
                raise NotFiniteError.of(gradient[: (at + 1) * SUM_BLOCK], at * SUM_BLOCK)
            if at < len(self._rows):
                self._wide = np.concatenate([self._wide, np.empty_like(self._wide)])
                self._bind()

    def take(self, out: F32) -> None:
        """out = the sum, rounded to f32; the next sum begins at zero."""
        assert out.shape == self._plane.shape
        self._lib.pe_sums_take(ct.byref(self._record), out.ctypes.data, len(out))
        self.clear()

    def clear(self) -> None:
        """Begin a sum at zero."""
        self._plane.fill(0)
        self._rows.fill(-1)
        self._record.count = 0

    @property
    def nbytes(self) -> int:
        """Bytes that it takes now."""
        return self._plane.nbytes + self._rows.nbytes + self._wide.nbytes
