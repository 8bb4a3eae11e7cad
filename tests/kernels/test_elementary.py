"""Elementary functions: near the C library's, and the same bits everywhere."""

from __future__ import annotations

import hashlib
import math
import struct

import numpy as np
import pytest

from picoedge.kernels.elementary import cosine_of_half_turns, exponential, power


def hash_of(values: list[float]) -> str:
    return hashlib.sha256(struct.pack(f"<{len(values)}d", *values)).hexdigest()[:16]


def test_exponentials() -> None:
    x = np.concatenate([-np.arange(5000) / 7, [0.0, -1e-300, -1e9, -np.inf]])
    out = exponential(x)
    np.testing.assert_allclose(out, np.exp(np.maximum(x, -700)), rtol=2e-15)
    assert hash_of(out.tolist()) == "be75a7a999a98e04"


def test_cosines() -> None:
    turns = [i / 1000 for i in range(1001)]
    found = [cosine_of_half_turns(x) for x in turns]
    np.testing.assert_allclose(found, np.cos(np.pi * np.array(turns)), atol=5e-16)
    assert (found[0], found[500], found[1000]) == (1.0, 0.0, -1.0)
    assert found == sorted(found, reverse=True)
    assert hash_of(found) == "c73d24a3735b3c2a"


def test_powers() -> None:
    steps = [*range(20), 999, 10_000_000]
    found = [power(0.95, step) for step in steps]
    assert found == pytest.approx([math.pow(0.95, step) for step in steps], rel=1e-13)
    assert (power(0.999, 0), power(0.999, 1)) == (1.0, 0.999)
    assert hash_of(found) == "c32d1758ff167c3f"
