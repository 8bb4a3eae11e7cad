"""Properties of a split: every shard once, in rank order, and no other is done earlier."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoedge.cli.options import parse_split
from picoedge.errors import UsageError
from picoedge.planner.assignment import (
    all_partitions,
    apportion,
    round_equal_speeds,
    slices_of,
    split_by_weight,
)
from picoedge.planner.memory import Counts
from picoedge.planner.topology import MOST_BOARDS
from picoedge.store.shards import Slice

speeds = st.one_of(st.just(0.0), st.floats(0.01, 100.0), st.sampled_from([0.5, 1.0, 2.0]))
weights = st.lists(speeds, min_size=1, max_size=12).filter(any)
counts = st.builds(Counts, st.integers(0, 40), st.integers(0, 130), st.integers(0, 80))


def bottleneck(shards: Sequence[int], speed: Sequence[float]) -> float:
    """When the last board is done."""
    return max(n / w if w else (math.inf if n else 0.0) for n, w in zip(shards, speed, strict=True))


def sizes(slices: list[Slice]) -> tuple[list[int], list[int]]:
    return [len(s.attention) for s in slices], [len(s.ffn) for s in slices]


@given(counts, weights)
def test_every_shard_is_dealt_once_in_rank_order(total: Counts, speed: list[float]) -> None:
    slices = split_by_weight(total, speed)
    assert len(slices) == len(speed)
    assert [i for s in slices for i in s.attention] == list(range(total.attention))
    assert [i for s in slices for i in s.ffn] == list(range(total.ffn))
    for one, weight in zip(slices, speed, strict=True):
        assert weight or not (one.attention or one.ffn)


@given(counts, weights, st.booleans())
def test_every_head_shard_is_dealt_once(
    total: Counts, speed: list[float], split_head: bool
) -> None:
    slices = split_by_weight(total, speed, split_head=split_head)
    assert [i for s in slices for i in s.head_shards] == list(range(total.head))
    assert [s.owns_head for s in slices] == [True] + [False] * (len(speed) - 1)
    shards = [len(s.head_shards) for s in slices]
    if split_head:
        assert all(weight or not n for n, weight in zip(shards, speed, strict=True))
        fair = [total.head * weight / sum(speed) for weight in speed]
        assert all(n >= math.floor(due) for n, due in zip(shards, fair, strict=True))
    else:
        assert shards[0] == total.head


@given(st.integers(0, 8), st.integers(0, 9), st.lists(speeds, min_size=1, max_size=4).filter(any))
def test_no_other_deal_is_done_earlier(groups: int, shards: int, speed: list[float]) -> None:
    for count, dealt in zip(
        (groups, shards), sizes(split_by_weight(Counts(groups, shards), speed)), strict=True
    ):
        best = min(bottleneck(other, speed) for other in all_partitions(count, len(speed)))
        assert bottleneck(dealt, speed) == best


@given(counts, weights)
def test_another_shard_takes_none_from_any_board(total: Counts, speed: list[float]) -> None:
    before = sizes(split_by_weight(total, speed))
    after = sizes(
        split_by_weight(Counts(total.attention + 1, total.ffn + 1, total.head + 1), speed)
    )
    for fewer, more in zip(before, after, strict=True):
        assert all(a <= b for a, b in zip(fewer, more, strict=True))


@given(counts, weights, st.data())
def test_a_faster_board_never_takes_less(
    total: Counts, speed: list[float], data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, len(speed) - 1))
    faster = [*speed]
    faster[rank] = 2 * speed[rank] + 0.5
    before, after = split_by_weight(total, speed)[rank], split_by_weight(total, faster)[rank]
    assert len(before.attention) <= len(after.attention)
    assert len(before.ffn) <= len(after.ffn)


@given(counts, weights)
def test_another_board_never_slows_the_others(total: Counts, speed: list[float]) -> None:
    for before, after in zip(
        sizes(split_by_weight(total, speed)),
        sizes(split_by_weight(total, [*speed, 1.0])),
        strict=True,
    ):
        assert bottleneck(after, [*speed, 1.0]) <= bottleneck(before, speed)


@pytest.mark.parametrize(
    ("total", "speed", "attention", "ffn"),
    [
        (Counts(4, 22), [1.0], [4], [22]),
        (Counts(4, 22), [1.0, 1.0], [2, 2], [11, 11]),
        (Counts(4, 22), [2.0, 1.0], [3, 1], [15, 7]),
        (Counts(3, 6), [1.0, 1.0], [2, 1], [3, 3]),
        (Counts(1, 8), [1.0, 1.0, 1.0], [1, 0, 0], [3, 3, 2]),  # more boards than key-value heads
        (Counts(4, 8), [1.0, 0.0, 1.0], [2, 0, 2], [4, 0, 4]),
        (Counts(4, 12), [3.0, 1.0], [3, 1], [9, 3]),
        (Counts(2, 2), [100.0, 1.0], [2, 0], [2, 0]),
        # In proportion board 0 is due 2.6 of 4 and would take 3; a stage is done sooner as dealt.
        (Counts(4, 0), [65.0, 20.0, 15.0], [3, 1, 0], [0, 0, 0]),
    ],
)
def test_deals(total: Counts, speed: list[float], attention: list[int], ffn: list[int]) -> None:
    assert split_by_weight(total, speed) == slices_of(attention, ffn)


@given(st.integers(0, 9), st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_a_board_takes_no_more_than_it_can(count: int, room: list[int]) -> None:
    def cost(board: int, shards: int) -> float:
        return float(shards) if shards <= room[board] else math.inf

    taken = apportion(count, len(room), cost)
    if count > sum(room):
        assert taken is None
        return
    assert taken is not None
    assert sum(taken) == count
    assert all(n <= most for n, most in zip(taken, room, strict=True))
    fits = [
        max(other)
        for other in all_partitions(count, len(room))
        if all(n <= most for n, most in zip(other, room, strict=True))
    ]
    assert max(taken) == min(fits)


@pytest.mark.parametrize(
    ("text", "split"),
    [("3,1", (3.0, 1.0)), ("1", (1.0,)), (" 1, 0 ,2.5", (1.0, 0.0, 2.5)), ("0,1", (0.0, 1.0))],
)
def test_splits_are_read(text: str, split: tuple[float, ...]) -> None:
    assert parse_split(text) == split


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "3,", "a,b", "0,0", "nan,1", "inf,1", "-1,2", "1e9,1", "1e-9,1", "3;1", "0x1"),
        *("1," * MOST_BOARDS + "1", "1," * 10**6, "1" * 10**6),
    ],
)
def test_other_splits_are_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_split(text)
    assert caught.value.hint
    assert len(str(caught.value)) < 300


@given(st.integers(0, 7), st.integers(1, 4))
def test_all_dealings_are_there_once(count: int, boards: int) -> None:
    ways = list(all_partitions(count, boards))
    assert len(set(ways)) == len(ways) == math.comb(count + boards - 1, boards - 1)
    assert all(sum(way) == count and len(way) == boards for way in ways)


@pytest.mark.parametrize(
    ("speeds", "level"),
    [
        ([4.0], [4.0]),
        ([4.0, 4.2], [4.1, 4.1]),
        ([4.2, 2.0, 4.0], [4.1, 2.0, 4.1]),
        ([4.0, 4.5], [4.0, 4.5]),
        ([4.0, 4.4, 4.8], [4.0, 4.6, 4.6]),  # not one by one to the other end
        ([0.0, 1.0, 1.0], [0.0, 1.0, 1.0]),
    ],
)
def test_speeds_that_are_as_good_as_equal_are_made_equal(
    speeds: list[float], level: list[float]
) -> None:
    assert round_equal_speeds(speeds) == pytest.approx(level)
