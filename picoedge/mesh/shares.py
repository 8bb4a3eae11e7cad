"""Who adds what: sums are cut among boards where that moves fewer bytes. Pure arithmetic.

Where all send their parts to all, each board sends its part of every value to each other one. Where
each is the hub of its own share, it sends parts of the others' shares and the sums of its own: two
hops instead of one, and fewer bytes the more boards there are.
"""

from __future__ import annotations

from collections.abc import Sequence

PART_BYTES = 6  # of one value of an exact part: f64 without its last 16 bits, which are zero
WHOLE_BYTES = 4  # of one value of an exact sum: f32, as whoever reads it makes it anyway
BLOCK = 32  # values that are never cut apart
# What a second hop costs, in bytes that could have been sent instead: some 100 us of a small board.
HOP_BYTES = 32 << 10


def are_cut(values: int, contributors: int) -> bool:
    """Whether so many boards, each linked to all, cut the addition of so many values into shares.

    What one board has alone is told to the others as a sum.
    """
    others = contributors - 1
    apart = others * PART_BYTES
    cut = others * (PART_BYTES + WHOLE_BYTES) / contributors
    return contributors == 1 or values * (apart - cut) > HOP_BYTES


def shares(values: int, owners: Sequence[int]) -> dict[int, slice]:
    """The values that each owner adds up, all about alike; some may have none."""
    blocks = -(-values // BLOCK)
    ends = [min(values, blocks * i // len(owners) * BLOCK) for i in range(len(owners) + 1)]
    ends[-1] = values
    return {owner: slice(ends[i], ends[i + 1]) for i, owner in enumerate(owners)}
