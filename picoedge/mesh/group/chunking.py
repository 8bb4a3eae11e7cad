"""When a sum is cut into a chunk for each rank, and into which chunks. Pure arithmetic.

Uncut, each contributor sends its whole part to every other one: one hop. Cut, each owns a chunk: it
receives the parts of its chunk and sends back their sum (reduce-scatter, then all-gather; Thakur,
Rabenseifner, Gropp 2005): two hops, and fewer bytes the more ranks there are.
"""

from __future__ import annotations

from collections.abc import Sequence

from picoedge.kernels.f48 import F48_BYTES

SUM_VALUE_BYTES = 4  # of one value of a lossless sum: f32, as its readers convert it anyway
SHORT_BYTES, LONG_BYTES = 8, F48_BYTES  # of one value of a lossless part
F48_FROM = 8192  # values: of shorter parts f48 costs more time than encrypting all 8 bytes
BLOCK = 32  # values that are never cut apart: they share a scale in q8
# What the messages of a second hop cost, in bytes that the link could carry meanwhile (measured).
HOP_BYTES = 24 << 10


def part_bytes(values: int) -> int:
    """Bytes of one value of a lossless part of `values` values."""
    return LONG_BYTES if values >= F48_FROM else SHORT_BYTES


def is_cut(values: int, contributors: int) -> bool:
    """Whether that many ranks, each linked to all others, cut a sum of `values` into chunks.

    Always with a single contributor: it owns all, and its part is sent as the sum.
    """
    uncut = part_bytes(values)
    saved = uncut - (uncut + SUM_VALUE_BYTES) / contributors
    return contributors == 1 or values * saved > HOP_BYTES


def chunks(values: int, owners: Sequence[int]) -> dict[int, slice]:
    """The values that each owner adds up, nearly equally many; some may have none.

    >>> chunks(100, (0, 2, 5))
    {0: slice(0, 32, None), 2: slice(32, 64, None), 5: slice(64, 100, None)}
    """
    blocks = -(-values // BLOCK)
    ends = [min(values, blocks * i // len(owners) * BLOCK) for i in range(len(owners) + 1)]
    ends[-1] = values
    return {owner: slice(ends[i], ends[i + 1]) for i, owner in enumerate(owners)}
