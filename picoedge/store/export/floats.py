"""Values of an exported file: f32, or f16 that none of them is too large for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from picoedge.errors import ModelError
from picoedge.kernels.arrays import F32

FloatType = Literal["f32", "f16"]
FLOAT_BYTES: dict[FloatType, int] = {"f32": 4, "f16": 2}
_LARGEST = np.float32(65504)  # that an f16 holds


def float_bytes(blocks: Iterator[F32], dtype: FloatType, name: str) -> Iterator[bytes]:
    """The bytes of a tensor's blocks. Raises ModelError where f16 cannot hold a value."""
    for block in blocks:
        if dtype == "f32":
            yield block.astype("<f4", copy=False).tobytes()
            continue
        if not np.abs(block).max(initial=0) <= _LARGEST:
            raise ModelError(
                f"{name} has values that f16 cannot hold", "export in f32: --dtype f32"
            )
        yield block.astype("<f2").tobytes()
