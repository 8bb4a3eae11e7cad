"""Random values that a run begins with, drawn by whole numbers: the same on every machine.

Bits are those of SplitMix64 (Steele et al. 2014) whose state begins as a key; what becomes of them
takes whole numbers and one product. (NumPy draws its distributions by the log and
exp of a C library, and may change how.)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from picoedge.kernels.arrays import F32
from picoedge.train.data.order import FIRST, GOLDEN, SECOND, mix

_SPAN = 1 << 16  # values at a time
_WORDS, _PARTS = 3, 4  # of 64 bits that a normal value takes; numbers of 16 bits in each


def tensor_key(seed: int, number: int) -> int:
    """The key of the `number`-th tensor of a run."""
    return mix(mix(seed) ^ number)


def random_bits(key: int, start: int, count: int) -> NDArray[np.uint64]:
    """Numbers [start, start + count) of the generator: `order.mix` of key + number * GOLDEN."""
    bits = np.arange(start, start + count, dtype=np.uint64)
    bits *= np.uint64(GOLDEN)
    bits += np.uint64(key)
    bits += np.uint64(GOLDEN)
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(FIRST)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(SECOND)
    bits ^= bits >> np.uint64(31)
    return bits


def fill_normal(out: F32, key: int, deviation: float) -> None:
    """Fill an array, whose memory is contiguous, with normal values of mean 0.

    Each is the sum of twelve uniform numbers of 16 bits (Irwin-Hall): exact in f32, of variance
    1 - 2^-32, and never beyond six deviations. One product with the deviation follows.
    """
    flat, by = out.reshape(-1), np.float32(deviation)
    mean = _WORDS * _PARTS * 0xFFFF // 2
    for at, part in _spans(flat):
        words = random_bits(key, _WORDS * at, _WORDS * len(part))
        parts = words.view(np.uint16).reshape(len(part), -1)
        drawn = parts.sum(axis=1, dtype=np.int32) - np.int32(mean)
        part[...] = drawn.astype(np.float32) * np.float32(2.0**-16) * by


def fill_uniform(out: F32, key: int, bound: float) -> None:
    """Fill an array, whose memory is contiguous, with uniform values within +- `bound`."""
    flat, by = out.reshape(-1), np.float32(bound)
    for at, part in _spans(flat):
        drawn = (random_bits(key, at, len(part)) >> np.uint64(40)).astype(np.int32)  # 24 bits
        part[...] = (drawn - np.int32(1 << 23)).astype(np.float32) * np.float32(2.0**-23) * by


def _spans(flat: F32) -> Iterator[tuple[int, F32]]:
    for at in range(0, len(flat), _SPAN):
        yield at, flat[at : at + _SPAN]
