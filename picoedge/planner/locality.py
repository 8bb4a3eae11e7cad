"""Parts of a model that boards have: shards on their disks, and slices loaded still. Pure.

An assignment of shards already there is taken if it is at most 10 % slower: measured speeds differ
by some per cent from one start to the next, and a large slice takes minutes to pull or to load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from picoedge.errors import StorageError
from picoedge.planner.cost_model import WORTH, Candidate, CostModel
from picoedge.planner.memory import Counts
from picoedge.store.shards import HeldShards, Slice
from picoedge.units import format_size

KEEP = 1.1  # an assignment of shards already there may be this much slower: estimates are no better
KEEP_LOADED = 1.25  # the same of loaded slices: loading takes as long as hundreds of tokens
DISK_SPARE_BYTES = 16 << 20  # that a pull leaves free
FILES_BESIDE = 16  # of a pack, beside one for each layer; and of its temporary ones
Pair: TypeAlias = tuple[Candidate, Candidate]  # a candidate, and its exact plan
Ends: TypeAlias = tuple[
    int, int, int
]  # the shards of each kind before a board's slice, or up to its end


class Locality:
    """Prefers an assignment whose shards are already on disk if it is at most 10 % slower.

    `held` are the shards of the model on the disks of boards, by index; others have all of them.
    Measured speeds differ by some per cent from one start to the next, and a large slice takes
    minutes to pull: so shards are pulled only for an assignment that is clearly faster.
    """

    def __init__(self, costs: CostModel, held: Mapping[int, HeldShards]) -> None:
        self._costs, self._held = costs, held
        self._all = _shards_of(costs.needs.load.part)

    def missing_bytes(self, one: Candidate) -> int:
        """Bytes of the candidate's shards that have to be pulled first."""
        return sum(self.missing_on(one).values())

    def missing_on(self, one: Candidate) -> dict[int, int]:
        """Bytes that have to be pulled first, by the board's index."""
        return {
            member: sum(
                len(getattr(_shards_of(share.part), kind) - getattr(self._of(member), kind)) * size
                for kind, size in self._costs.needs.shard_bytes.items()
            )
            for member, share in zip(one.members, one.shares, strict=True)
        }

    def prefer_local(
        self, quickest: Candidate, order: Sequence[int], boards: int | None = None
    ) -> Candidate | None:
        """A candidate to take instead of the fastest because less has to be pulled for it, if any.

        `order`: all boards, the hub first, then those that gain more; `boards`: exactly so many.
        """
        missing = self.missing_bytes(quickest)
        if not missing:
            return None
        local = [
            one
            for one in self.within(order)
            if one.s_per_token <= KEEP * quickest.s_per_token and boards in (None, one.boards)
        ]
        if local:
            least_s = min(one.s_per_token for one in local)
            able = [one for one in local if one.s_per_token <= WORTH * least_s]
            return min(able, key=lambda one: one.boards)
        moved = (self._costs.best(members) for members in self._orders(quickest.members))
        near = [one for one in moved if one and one.s_per_token <= WORTH * quickest.s_per_token]
        least = min(near, key=self.missing_bytes, default=quickest)
        return least if self.missing_bytes(least) < missing else None

    def within(self, order: Sequence[int]) -> Iterator[Candidate]:
        """Candidates of local shards alone, over the first board that has any, the first two, …"""
        holders = [i for i in order if self._of(i) != HeldShards()]
        for count in range(1, len(holders) + 1):
            for members in self._orders(holders[:count]):
                one = self._costs.best(members, [self._of(i) for i in members])
                if one is not None:
                    yield one

    def _orders(self, members: Sequence[int]) -> Iterator[list[int]]:
        """Rank orders to try: the hub, boards with partial holdings by their first shard, and the
        others in every position between."""
        hub, *others = members
        placed = sorted((place, i) for i in others if (place := self._place(i)) is not None)
        some = [i for _, i in placed]
        rest = [i for i in others if i not in some]
        for at in range(len(some) + 1 if rest else 1):
            yield [hub, *some[:at], *rest, *some[at:]]

    def _place(self, member: int) -> tuple[float, float] | None:
        """Begin and end of a board's partial holding in the model, from 0 to 1."""
        for kind in ("ffn", "attention", "head"):
            shards, whole = getattr(self._of(member), kind), getattr(self._all, kind)
            if shards and shards != whole:
                return min(shards) / len(whole), max(shards) / len(whole)
        return None

    def _of(self, member: int) -> HeldShards:
        return self._held.get(member, self._all)


def _shards_of(part: Slice) -> HeldShards:
    return HeldShards(*map(frozenset, (part.attention, part.ffn, part.head_shards)))


def loaded_slices(
    counts: Counts, loaded: Mapping[int, Slice], hub: int
) -> Iterator[tuple[list[int], list[Slice]]]:
    """Boards, the hub first, and their loaded slices, which cover every shard once.

    `loaded` is by the board's index. The hub has its own loaded slice or, without one, the shards
    before the other boards' first.
    """
    others = {i: part for i, part in loaded.items() if i != hub and any(map(len, _spans(part)))}
    own = [_ends(loaded[hub])] if hub in loaded and _starts(loaded[hub]) == (0, 0, 0) else []
    for first in own or sorted({_starts(part) for part in others.values()}):
        seen: set[Ends] = set()
        if rest := _chain(first, counts, others, seen):
            attention, ffn, head = (range(end) for end in first)
            part = Slice(attention, ffn, head)
            yield [hub, *rest], [part, *(others[i] for i in rest)]


def _chain(
    at: Ends, counts: Counts, others: Mapping[int, Slice], seen: set[Ends]
) -> list[int] | None:
    """Boards whose slices follow one another from there to the end. Each place is tried once."""
    if at == tuple(counts):
        return []
    seen.add(at)
    for i, part in others.items():
        if _starts(part) == at and _ends(part) not in seen:
            rest = _chain(_ends(part), counts, others, seen)
            if rest is not None:
                return [i, *rest]
    return None


def _spans(part: Slice) -> tuple[range, range, range]:
    return part.attention, part.ffn, part.head_shards


def _starts(part: Slice) -> Ends:
    return part.attention.start, part.ffn.start, part.head_shards.start


def _ends(part: Slice) -> Ends:
    return part.attention.stop, part.ffn.stop, part.head_shards.stop


class OnBoards:
    """The boards' shards and room on disks, against the quickest plan.

    `order`: all boards, the hub first, then those that gain more; `boards`: exactly so many.
    """

    def __init__(
        self,
        costs: CostModel,
        order: Sequence[int],
        boards: int | None,
        held: Mapping[int, HeldShards],
        loaded: Mapping[int, Slice],
    ) -> None:
        self._costs, self._order, self._boards = costs, order, boards
        self._held, self._loaded = held, loaded
        self._disks = Locality(costs, held)
        self._full: dict[int, HeldShards] = {}  # boards that take only what they hold

    def with_room(self, quickest: Pair, *, is_fixed: bool) -> tuple[Pair, str]:
        """The quickest plan for which all disks have room, and which have none for their part.

        Raises StorageError with the figures where there is no such plan, or it `is_fixed`.
        """
        told: dict[str, str] = {}
        while short := self._short_of(quickest[0]):
            told |= short
            found = None if is_fixed else self._without()
            if found is None:
                what = "; ".join(f"{name}: {figures}" for name, figures in told.items())
                raise StorageError(
                    f"a disk has no room for its part of the model: {what}",
                    "free some space there: picoedge rm, on that board",
                )
            quickest = found
        names = (f"; {name} has no room for its part: {each}" for name, each in told.items())
        return quickest, "".join(names)

    def _short_of(self, one: Candidate) -> dict[str, str]:
        """Boards whose disks lack room for what they would have to pull: the figures, by name."""
        short, layers = {}, self._costs.needs.load.config.num_hidden_layers
        for member, missing in self._disks.missing_on(one).items():
            board = self._costs.board(member)
            nothing_there = self._held.get(member) == HeldShards()
            if missing + DISK_SPARE_BYTES > board.disk_free_bytes and missing:
                free = format_size(board.disk_free_bytes)
                short[board.name] = f"{format_size(missing)} needed, {free} free"
            elif nothing_there and layers + FILES_BESIDE > board.disk_free_files:
                short[board.name] = f"{layers} files needed, {board.disk_free_files} free"
            else:
                continue
            self._full[member] = self._held.get(member, HeldShards())
        return short

    def _without(self) -> Pair | None:
        """The fewest boards that are as quick as any, where full ones take what they hold."""
        able = [
            one
            for one in Locality(self._costs, self._full).within(self._order)
            if self._boards in (None, one.boards)
        ]
        if not able:
            return None
        least_s = min(one.s_per_token for one in able)
        near = [one for one in able if one.s_per_token <= WORTH * least_s]
        best = min(near, key=lambda one: one.boards)
        return best, self._costs.exact(best)

    def prefer(self, quickest: Pair) -> Pair:
        """The plan to take: with loaded slices, else with local shards, else the quickest."""
        if (pair := self._loaded_one(quickest)) is not None:
            same = [s.part for s in pair[0].shares] == [s.part for s in quickest[0].shares]
            return quickest if same else pair
        boards = quickest[0].boards if self._boards else None
        local = self._disks.prefer_local(quickest[0], self._order, boards)
        if local is None:
            return quickest
        pair = local, self._costs.exact(local)
        return quickest if not self._is_near(pair, quickest) or self._short_of(local) else pair

    def missing_bytes(self, one: Candidate) -> int:
        """Bytes of the candidate's shards that have to be pulled first."""
        return self._disks.missing_bytes(one)

    def is_loaded(self, one: Candidate) -> bool:
        """Whether the candidate is of slices that are loaded, but perhaps for the hub's."""
        others = list(zip(one.members, one.shares, strict=True))[1:]
        return bool(others) and all(self._loaded.get(i) == share.part for i, share in others)

    def _loaded_one(self, quickest: Pair) -> Pair | None:
        """The quickest plan of slices that are loaded, if it is hardly slower."""
        needs, hub = self._costs.needs, quickest[0].members[0]
        pairs = []
        for members, slices in loaded_slices(needs.counts, self._loaded, hub):
            one = self._costs.estimate(members, slices)
            if one is not None and self._boards in (None, one.boards):
                pairs.append((one, self._costs.exact(one)))
        best = min(pairs, key=lambda pair: pair[1].s_per_token, default=None)
        return best if best is not None and self._is_near(best, quickest, KEEP_LOADED) else None

    def _is_near(self, pair: Pair, quickest: Pair, factor: float = KEEP) -> bool:
        return pair[1].s_per_token <= factor * quickest[1].s_per_token
