"""Prefer an assignment whose shards are already on disk if it is at most 10 % slower. Pure.

Measured speeds differ by some per cent from one start to the next, and a large slice takes minutes
to pull: so shards are pulled only for an assignment that is clearly faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from picoedge.planner.cost_model import WORTH, Candidate, CostModel
from picoedge.store.shards import HeldShards, Slice

KEEP = 1.1  # a local assignment may be this much slower: estimates are no better


class Locality:
    """The shards of a model on the disks of boards: `held`, by index. Others have all of them."""

    def __init__(self, planner: CostModel, held: Mapping[int, HeldShards]) -> None:
        self._planner, self._held, load = planner, held, planner.needs.load
        part = load.part
        self._all = _held(part)
        self._bytes = dict.fromkeys(("attention", "ffn", "head"), 0)  # of one shard in every layer
        for run in load.runs:
            self._bytes[run.kind] += run.shard_bytes

    def missing_bytes(self, one: Candidate) -> int:
        """Bytes of the candidate's shards that have to be pulled first."""
        return sum(
            len(getattr(_held(share.part), kind) - getattr(self._of(member), kind)) * nbytes
            for member, share in zip(one.members, one.shares, strict=True)
            for kind, nbytes in self._bytes.items()
        )

    def prefer_local(
        self, quickest: Candidate, order: Sequence[int], boards: int | None = None
    ) -> Candidate | None:
        """A candidate to take instead of the fastest because less has to be pulled for it, if any.

        `order`: all boards, the hub first, then those that gain more; `boards`: exactly so many.
        """
        lacking = self.missing_bytes(quickest)
        if not lacking:
            return None
        there = [
            one
            for one in self._there(order)
            if one.s_per_token <= KEEP * quickest.s_per_token and boards in (None, one.boards)
        ]
        if there:
            least_s = min(one.s_per_token for one in there)
            able = [one for one in there if one.s_per_token <= WORTH * least_s]
            return min(able, key=lambda one: one.boards)
        moved = (self._planner.best(members) for members in self._orders(quickest.members))
        near = [one for one in moved if one and one.s_per_token <= WORTH * quickest.s_per_token]
        least = min(near, key=self.missing_bytes, default=quickest)
        return least if self.missing_bytes(least) < lacking else None

    def _there(self, order: Sequence[int]) -> Iterator[Candidate]:
        """Candidates of local shards alone, over the first board that has any, the first two, …"""
        holders = [i for i in order if self._of(i) != HeldShards()]
        for count in range(1, len(holders) + 1):
            for members in self._orders(holders[:count]):
                one = self._planner.best(members, [self._of(i) for i in members])
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
        """Where a board's partial holding begins and ends in the model, from 0 to 1."""
        for kind in ("ffn", "attention", "head"):
            shards, whole = getattr(self._of(member), kind), getattr(self._all, kind)
            if shards and shards != whole:
                return min(shards) / len(whole), max(shards) / len(whole)
        return None

    def _of(self, member: int) -> HeldShards:
        return self._held.get(member, self._all)


def _held(part: Slice) -> HeldShards:
    return HeldShards(*map(frozenset, (part.attention, part.ffn, part.head_shards)))
