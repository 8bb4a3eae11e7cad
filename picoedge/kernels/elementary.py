"""Elementary functions whose bits are the same on every machine.

They take additions, multiplications and roundings alone, which IEEE 754 defines to the last bit.
The exp, cos and pow of a C library, and of NumPy, differ between processors and versions.
"""

from __future__ import annotations

import math

import numpy as np

from picoedge.kernels.arrays import F64

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_LEAST = -700.0  # exp of it is no subnormal
_EXP = tuple(1 / math.factorial(n) for n in range(13, -1, -1))  # its series, the highest term first
_COS = tuple((-1.0) ** n / math.factorial(2 * n) for n in range(9, -1, -1))
_SIN = tuple((-1.0) ** n / math.factorial(2 * n + 1) for n in range(9, -1, -1))


def exponential(x: F64) -> F64:
    """e to the power of each x, at most 0, to about 1e-15; below -700 as there. Any shape."""
    x = np.maximum(x, _LEAST)
    twos = np.rint(x * _LOG2_E)
    rest = (x - twos * _LN2_HIGH) - twos * _LN2_LOW  # within half of ln 2
    out = np.full_like(rest, _EXP[0])
    for coefficient in _EXP[1:]:
        out *= rest
        out += coefficient
    scaled: F64 = np.ldexp(out, twos.astype(np.int32))
    return scaled


def cosine_of_half_turns(x: float) -> float:
    """cos(pi x) for x in [0, 1]."""
    if x > 0.5:
        return -cosine_of_half_turns(1 - x)
    if x <= 0.25:
        return _series(_COS, math.pi * x)
    angle = math.pi * (0.5 - x)
    return angle * _series(_SIN, angle)


def _series(coefficients: tuple[float, ...], angle: float) -> float:
    """The polynomial in the angle's square, the highest coefficient first."""
    square, total = angle * angle, 0.0
    for coefficient in coefficients:
        total = total * square + coefficient
    return total


def power(base: float, exponent: int) -> float:
    """base to the power of a whole number from 0 on, by repeated squares."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result
