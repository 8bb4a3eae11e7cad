"""Apportion shards to boards by their speed. Pure arithmetic.

Every stage (attention and FFN of a layer, the head) ends when its slowest board is done, so each
kind of shard is apportioned by itself, and the largest time of a board is minimised.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from picoedge.errors import UsageError
from picoedge.store.shards import Slice

Cost = Callable[[int, int], float]  # (board, shards) -> seconds, or whatever is to be least

MOST_BOARDS = 64
SAME = 1.1  # speeds within this factor are equal but for noise of measuring
_LARGEST, _SMALLEST = 1e6, 1e-3  # of a weight a user writes
_REMEDY = "write one number a board, the hub's first, like --tensor-split 3,1"


class Counts(NamedTuple):
    """Shards of each kind, in a layer or in the head: a model's, or a board's."""

    attention: int
    ffn: int
    head: int = 0


def split_by_weight(
    counts: Counts, weights: Sequence[float], *, split_head: bool = False
) -> list[Slice]:
    """Each board's slice, in rank order: runs that follow one another and cover every shard.

    `weights` are speeds in any unit; a board of weight 0 takes nothing. In each kind the largest
    of shards / weight is the least there is. Without `split_head` rank 0 has all of the head.
    """
    assert any(weight > 0 for weight in weights), "no board has a weight"

    def cost(board: int, shards: int) -> float:
        return shards / weights[board] if weights[board] > 0 else math.inf

    def split(count: int) -> list[int]:
        shares = apportion(count, len(weights), cost)
        assert shares is not None
        return shares

    head = split(counts.head) if split_head else all_on_hub(counts.head, len(weights))
    return slices_of(split(counts.attention), split(counts.ffn), head)


def round_equal_speeds(speeds: Sequence[float]) -> list[float]:
    """Replace speeds within a factor of SAME of each other by their mean.

    Two boards of one kind measure some percent apart by chance. If one of them got a shard more
    for that, the other would wait in every stage.
    """
    found, group = list(speeds), list[int]()
    for i in sorted(range(len(speeds)), key=lambda i: -speeds[i]):
        if group and speeds[i] * SAME < speeds[group[0]]:
            group = []
        group.append(i)
        mean = sum(speeds[each] for each in group) / len(group)
        for each in group:
            found[each] = mean
    return found


def all_on_hub(count: int, boards: int) -> list[int]:
    """Counts by rank with all shards on the hub."""
    return [count] + [0] * (boards - 1)


def apportion(count: int, boards: int, cost: Cost) -> list[int] | None:
    """How many of `count` shards each board takes, the largest cost being minimal.

    `cost` must not fall with the number of shards; a board can take as many as have a finite one.
    None: the boards together cannot take all. Each next shard goes to the board whose cost with it
    is least, ties to the lower rank: no later shard can be placed at a lower cost, so no other
    partition has a lower maximum (for shards / weight this is D'Hondt's method).
    """
    taken = [0] * boards
    heap = [(cost(board, 1), board) for board in range(boards)]
    heapq.heapify(heap)
    for _ in range(count):
        least, board = heap[0] if heap else (math.inf, 0)
        if math.isinf(least):
            return None
        taken[board] += 1
        heapq.heapreplace(heap, (cost(board, taken[board] + 1), board))
    return taken


def apportion_held(count: int, held: Sequence[Collection[int]], cost: Cost) -> list[int] | None:
    """As `apportion`, but each board takes only shards it already has: `held`, by board.

    The spans follow one another in the order of the boards. None: no such spans cover all shards.
    Dynamic programming over where the next span begins.
    """
    dealt: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}  # by begin of the next span
    for board, has in enumerate(held):
        further: dict[int, tuple[float, tuple[int, ...]]] = {}
        for begin, (largest, sizes) in dealt.items():
            for size, own in _held_runs(begin, count, has, partial(cost, board)):
                each = max(largest, own), (*sizes, size)
                further[begin + size] = min(each, further.get(begin + size, each))
        dealt = further
    return list(dealt[count][1]) if count in dealt else None


def _held_runs(
    begin: int, count: int, held: Collection[int], cost: Callable[[int], float]
) -> Iterator[tuple[int, float]]:
    """Sizes and costs of the spans from `begin` that a board has and can take; first the empty."""
    yield 0, 0.0
    for end in range(begin + 1, count + 1):
        own = cost(end - begin) if end - 1 in held else math.inf
        if math.isinf(own):
            return
        yield end - begin, own


def all_partitions(count: int, boards: int) -> Iterator[tuple[int, ...]]:
    """All ways to divide `count` shards: comb(count + boards - 1, boards - 1) of them."""
    for cuts in itertools.combinations_with_replacement(range(count + 1), boards - 1):
        yield tuple(b - a for a, b in itertools.pairwise((0, *cuts, count)))


def slices_of(
    attention: Sequence[int], ffn: Sequence[int], head: Sequence[int] | None = None
) -> list[Slice]:
    """Slices with these counts of shards, one behind another in rank order; rank 0 is the hub.

    Without `head` no slice has shards of the head.
    """
    runs = zip(_runs(attention), _runs(ffn), _runs(head or [0] * len(ffn)), strict=True)
    return [Slice(a, f, h, owns_head=rank == 0) for rank, (a, f, h) in enumerate(runs)]


def _runs(sizes: Sequence[int]) -> list[range]:
    runs, at = [], 0
    for size in sizes:
        runs.append(range(at, at + size))
        at += size
    return runs


def parse_split(text: str) -> tuple[float, ...]:
    """The weights in `3,1` or `1,0,2.5`, one a board. Raises UsageError."""
    weights = tuple(_weight(part.strip(), text) for part in text.split(",", MOST_BOARDS + 1))
    if len(weights) > MOST_BOARDS:
        raise UsageError(f"a split over more than {MOST_BOARDS} boards", _REMEDY)
    if not any(weights):
        raise UsageError(f"the split {text!r} gives no board anything", _REMEDY)
    return weights


def _weight(part: str, text: str) -> float:
    try:
        weight = float(part)
    except ValueError:
        raise UsageError(f"not a split over boards: {text[:80]!r}", _REMEDY) from None
    if weight != 0 and not _SMALLEST <= weight <= _LARGEST:
        raise UsageError(
            f"{part[:20]} is no weight in the split {text[:80]!r}",
            f"0 or a number from {_SMALLEST:g} to {_LARGEST:g}",
        )
    return weight
