"""The rope's frequencies, on which all boards have to agree to the bit."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from picoedge.config import RopeScaling
from picoedge.model.bound_kernels import inverse_frequencies

BASES = [(1e4, 32), (1e4, 64), (1e5, 64), (5e5, 128), (1e6, 80), (1e6, 256)]
CODE = """
import hashlib
from picoedge.config import RopeScaling
from picoedge.model.bound_kernels import inverse_frequencies as f
found = b"".join(f(dim, base, RopeScaling()).tobytes() for base, dim in %r)
print(hashlib.sha256(found).hexdigest()[:16])
"""


def test_frequencies_have_the_same_bits_everywhere() -> None:
    tables = [inverse_frequencies(dim, base, RopeScaling()) for base, dim in BASES]
    for (base, dim), table in zip(BASES, tables, strict=True):
        np.testing.assert_allclose(table, base ** -(np.arange(0, dim, 2) / dim), rtol=4e-16)
    found = hashlib.sha256(b"".join(table.astype("<f8").tobytes() for table in tables))
    assert found.hexdigest()[:16] == "c8e3b6ed0bfb2d3b"


@pytest.mark.parametrize("features", ["X86_V4 AVX512_ICL", "AVX512F AVX512_SKX"])
def test_frequencies_are_those_of_a_processor_with_less(features: str) -> None:
    """NumPy's names for AVX-512, of which a version knows one or the other."""
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": features}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE % (BASES,)],
        env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "c8e3b6ed0bfb2d3b"
