"""Who adds what: sums are cut among boards where that moves fewer bytes. Pure arithmetic.

Where all send their parts to all, each board sends its part of every value to each other one. Where
each is the hub of its own share, it sends parts of the others' shares and the sums of its own: two
hops instead of one, and fewer bytes the more boards there are.
"""

from __future__ import annotations

from collections.abc import Sequence

from picoedge.kernels.f48 import F48_BYTES

SUM_BYTES = 4  # of one value of an exact sum: f32, as whoever reads it makes it anyway
SHORT_BYTES, LONG_BYTES = 8, F48_BYTES  # of a value of an exact part: f64, or without its last bits
# Parts of fewer values are sent as they are: taking them apart takes longer than encrypting all.
LONG = 8192
BLOCK = 32  # values that are never cut apart
# What the messages of another hop cost, in bytes that could be sent to that board instead.
HOP_BYTES = 24 << 10


def part_bytes(values: int) -> int:
    """Bytes of one of the values of an exact part."""
    return LONG_BYTES if values >= LONG else SHORT_BYTES


def are_cut(values: int, contributors: int) -> bool:
    """Whether so many boards, each linked to all, cut the addition of so many values into shares.

    What one board has alone is told to the others as a sum.
    """
    apart = part_bytes(values)
    saved = apart - (apart + SUM_BYTES) / contributors
    return contributors == 1 or values * saved > HOP_BYTES


def shares(values: int, owners: Sequence[int]) -> dict[int, slice]:
    """The values that each owner adds up, all about alike; some may have none."""
    blocks = -(-values // BLOCK)
    ends = [min(values, blocks * i // len(owners) * BLOCK) for i in range(len(owners) + 1)]
    ends[-1] = values
    return {owner: slice(ends[i], ends[i + 1]) for i, owner in enumerate(owners)}
