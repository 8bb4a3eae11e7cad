"""Texts that share a sequence: each once, within its room, and few sequences."""

from __future__ import annotations

import random

from picoedge.train.data.packing import pack_lengths


def test_every_text_is_packed_once_and_fits() -> None:
    draw = random.Random(3)
    for capacity in (1, 7, 64, 512):
        lengths = [draw.randint(1, capacity) for _ in range(300)]
        packed = pack_lengths(lengths, capacity, seed=1)
        assert sorted(number for row in packed for number in row) == list(range(300))
        assert all(sum(lengths[number] for number in row) <= capacity for row in packed)
        assert len(packed) <= 11 / 9 * -(-sum(lengths) // capacity) + 8


def test_short_texts_fill_their_sequences() -> None:
    lengths = [random.Random(i).randint(20, 90) for i in range(1000)]
    packed = pack_lengths(lengths, 256, seed=1)
    assert len(packed) * 256 < 1.02 * sum(lengths)


def test_the_seed_decides_alone() -> None:
    lengths = [random.Random(i).randint(1, 9) for i in range(100)]
    one, again, other = (pack_lengths(lengths, 20, seed) for seed in (1, 1, 2))
    assert one == again != other
    assert pack_lengths([], 5, 1) == []
