"""Short texts in long sequences: which go together. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from picoedge.train.data.order import mix


def pack_lengths(lengths: Sequence[int], capacity: int, seed: int) -> list[list[int]]:
    """Numbers of texts for each sequence of `capacity` tokens, by best fit, the longest first.

    Among texts of one length the seed decides. At most 11/9 of the fewest sequences are used
    (Johnson 1973).
    """
    key = mix(seed)
    numbers = sorted(range(len(lengths)), key=lambda i: (-lengths[i], mix(key ^ i)))
    sequences: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # room left -> sequences
    rooms: list[int] = []  # its keys, in order
    for number in numbers:
        length = lengths[number]
        assert 0 < length <= capacity
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            sequence = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[at]
        else:
            room, sequence = capacity, len(sequences)
            sequences.append([])
        sequences[sequence].append(number)
        if left := room - length:
            if left not in by_room:
                by_room[left] = []
                insort(rooms, left)
            by_room[left].append(sequence)
    return sequences
