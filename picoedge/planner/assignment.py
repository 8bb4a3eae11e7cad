"""Assign shards to boards by their speed, and by memory where it is short. Pure arithmetic.

Every stage (attention and FFN of a layer, the head) ends when its slowest board is done, so each
kind of shard is apportioned by itself, and the largest time of a board is minimised. Weights that
do not fit in memory are streamed: a token then takes as long as the stages or as the slowest disk,
whichever is longer, and each shard goes to the board that would finish it first by both.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from picoedge.planner.memory import Counts, MemoryNeeds, counts_of
from picoedge.planner.topology import BoardFacts
from picoedge.store.shards import HeldShards, Slice

SAME = 1.1  # speeds within this factor are equal but for noise of measuring
_FEW_PARTITIONS = 200  # up to here all are tried: some milliseconds
_MOVES = 4  # of local search: later ones gain less than the estimate is good for

Cost = Callable[[int, int], float]  # (board, shards) -> seconds, or whatever is to be least
GatherSeconds = Callable[[Sequence[int]], float]  # seconds to gather the logits of so many, by rank


# -- apportioning one kind of shard -------------------------------------------------------------


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
    rounded, group = list(speeds), list[int]()
    for i in sorted(range(len(speeds)), key=lambda i: -speeds[i]):
        if group and speeds[i] * SAME < speeds[group[0]]:
            group = []
        group.append(i)
        mean = sum(speeds[each] for each in group) / len(group)
        for each in group:
            rounded[each] = mean
    return rounded


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
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}  # by begin of the next span
    for board, local in enumerate(held):
        extended: dict[int, tuple[float, tuple[int, ...]]] = {}
        for begin, (largest, sizes) in best.items():
            for size, own in _held_spans(begin, count, local, partial(cost, board)):
                each = max(largest, own), (*sizes, size)
                extended[begin + size] = min(each, extended.get(begin + size, each))
        best = extended
    return list(best[count][1]) if count in best else None


def _held_spans(
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


def _moved(partition: Sequence[int]) -> Iterator[list[int]]:
    """All partitions in which one shard has moved."""
    for giver, taker in itertools.permutations(range(len(partition)), 2):
        if partition[giver]:
            moved = [*partition]
            moved[giver] -= 1
            moved[taker] += 1
            yield moved


def slices_of(
    attention: Sequence[int], ffn: Sequence[int], head: Sequence[int] | None = None
) -> list[Slice]:
    """Slices with these counts of shards, one behind another in rank order; rank 0 is the hub.

    Without `head` no slice has shards of the head.
    """
    spans = zip(_spans(attention), _spans(ffn), _spans(head or [0] * len(ffn)), strict=True)
    return [Slice(a, f, h, owns_head=rank == 0) for rank, (a, f, h) in enumerate(spans)]


def _spans(sizes: Sequence[int]) -> list[range]:
    ends = itertools.accumulate(sizes)
    return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]


# -- all kinds together -------------------------------------------------------------------------


class RankCounts(NamedTuple):
    """Counts of shards by rank, for each kind."""

    attention: list[int]
    ffn: list[int]
    head: list[int]


class Assigner:
    """Assigns shards to the boards of one group, by rank; rank 0 is the hub.

    The hub has the head; with a `gather` (seconds to collect the logits), it may be split as well.
    With `held`, by rank, a board gets only shards that it has on its disk.
    """

    def __init__(
        self,
        needs: MemoryNeeds,
        boards: Sequence[BoardFacts],
        gather: GatherSeconds | None = None,
        held: Sequence[HeldShards] = (),
    ) -> None:
        load = needs.load
        self.boards, self._needs, self._gather = tuple(boards), needs, gather
        self._held = held
        self._known_s: dict[tuple[int, int], float] = {}
        self.counts = counts_of(load.part)
        self._bytes = dict.fromkeys(("attention", "ffn", "head"), 0)
        for run in load.runs:
            self._bytes[run.kind] += run.nbytes
        self._layers = load.config.num_hidden_layers

    def stage_s(self, kind: str, rank: int, shards: int) -> float:
        """Seconds a token that a board computes for so many shards of a kind, over all layers."""
        if not shards:
            return 0.0
        board = self.boards[rank]
        count: int = getattr(self.counts, kind)
        nbytes = self._bytes[kind] * shards / count
        runs = 1 if kind == "head" else self._layers
        return nbytes / board.compute_bytes_per_s + runs * board.unit_s

    def _slowest_s(self, kind: str, partition: Sequence[int]) -> float:
        """Seconds a token of one kind with these counts by rank: the slowest board's."""
        return max(self.stage_s(kind, rank, shards) for rank, shards in enumerate(partition))

    def _layers_s(self, attention: Sequence[int], ffn: Sequence[int]) -> float:
        return self._slowest_s("attention", attention) + self._slowest_s("ffn", ffn)

    def head_s(self, head: Sequence[int]) -> float:
        """Seconds a token of the head with these counts, of gathering logits and sampling."""
        gathering = self._gather(head) if self._gather is not None else 0.0
        return self._slowest_s("head", head) + gathering + self.boards[0].sampling_s

    def _sent_head_s(self, ports: int, rank: int, shards: int) -> float:
        """Seconds of so many head shards, and of sending their logits to the hub.

        `ports`: how many boards share the hub's port while they send.
        """
        computing = self.stage_s("head", rank, shards)
        if not rank or not shards or self._gather is None:
            return computing
        if (rank, shards) not in self._known_s:
            self._known_s[rank, shards] = self._gather([0] * rank + [shards])
        return computing + ports * self._known_s[rank, shards]

    def disk_s(self, rank: int, counts: Counts) -> float:
        """Seconds a token that a board's disk reads for so many shards; inf: it cannot run them."""
        if rank and counts == Counts(0, 0, 0):
            return 0.0
        board = self.boards[rank]
        need = self._needs.of(counts, hub=rank == 0, numpy=board.numpy)
        room = board.budget_bytes - board.fixed_bytes
        return need.streamed(room, board.read_ahead_bytes) / board.disk_bytes_per_s

    def _slowest_disk_s(self, shards: RankCounts) -> float:
        return max(self.disk_s(i, Counts(*own)) for i, own in enumerate(zip(*shards, strict=True)))

    def token_s(self, shards: RankCounts, comm_s: float) -> float:
        """Seconds of a token with these counts."""
        layers = self._layers_s(shards.attention, shards.ffn)
        return max(self._slowest_disk_s(shards), layers + comm_s + self.head_s(shards.head))

    def candidates(self, comm_s: float) -> Iterator[RankCounts]:
        """Candidate assignments, fastest first; none if the boards cannot hold the model.

        `comm_s` is what the sums take. First the best for that; then the best with all attention on
        the hub, whose sums take a hop less.
        """
        for head in self._heads():
            best = self._by_speed(head) or self._by_memory(comm_s, head)
            if best is not None:
                yield best
            on_hub = all_on_hub(self.counts.attention, len(self.boards))
            alone = self._with_rest(on_hub, comm_s, head)
            if alone is not None:
                yield alone

    def _heads(self) -> Iterator[list[int] | None]:
        """Partitions of the head to try; None: wherever memory is left for it."""
        count, boards = self.counts.head, len(self.boards)
        yield all_on_hub(count, boards)
        if self._gather is None or boards == 1:
            return
        tried = [
            self._assign("head", partial(self._sent_head_s, ports)) for ports in (1, boards - 1)
        ]
        best = min((head for head in tried if head is not None), key=self.head_s)
        yield best if self._by_speed(best) else None

    def _by_speed(self, head: Sequence[int] | None) -> RankCounts | None:
        """Each kind apportioned by speed, if all then fits in memory: no assignment is faster."""
        attention, ffn = (
            self._assign(kind, partial(self.stage_s, kind)) for kind in ("attention", "ffn")
        )
        if head is None or attention is None or ffn is None:
            return None
        shards = RankCounts(attention, ffn, [*head])
        return shards if self._slowest_disk_s(shards) == 0 else None

    def _by_memory(self, comm_s: float, head: Sequence[int] | None) -> RankCounts | None:
        """The fastest over all partitions of the attention shards, if these are few.

        Else a local search: from a good one, one shard is moved at a time.
        """
        groups, boards = self.counts.attention, len(self.boards)
        if math.comb(groups + boards - 1, boards - 1) <= _FEW_PARTITIONS:
            return self._fastest(all_partitions(groups, boards), comm_s, head)
        best = self._fastest(self._good_partitions(comm_s, head), comm_s, head)
        for _ in range(_MOVES if best is not None else 0):
            assert best is not None
            better = self._fastest(_moved(best.attention), comm_s, head)
            if better is None or self.token_s(better, comm_s) >= self.token_s(best, comm_s):
                break
            best = better
        return best

    def _fastest(
        self, attentions: Iterable[Sequence[int]], comm_s: float, head: Sequence[int] | None
    ) -> RankCounts | None:
        """The best of these partitions of the attention shards, the rest apportioned to each."""
        local = (attention for attention in attentions if self._is_held(attention))
        return self._best((self._with_rest(each, comm_s, head) for each in local), comm_s)

    def _best(self, assigned: Iterable[RankCounts | None], comm_s: float) -> RankCounts | None:
        able = (shards for shards in assigned if shards is not None)
        return min(able, key=lambda shards: self.token_s(shards, comm_s), default=None)

    def _good_partitions(self, comm_s: float, head: Sequence[int] | None) -> Iterator[list[int]]:
        """Attention shards apportioned with their proportion of FFN shards.

        Then by free memory alone, ignoring FFN shards.
        """
        counts, words = self.counts, head or [0] * len(self.boards)

        def together(rank: int, shards: int) -> float:
            beside = counts.ffn * shards // counts.attention
            own = self.stage_s("attention", rank, shards) + self.stage_s("ffn", rank, beside)
            return max(own + comm_s, self.disk_s(rank, Counts(shards, beside, words[rank])))

        def alone(rank: int, shards: int) -> float:
            return self.disk_s(rank, Counts(shards, 0, words[rank]))

        tried = (self._assign("attention", cost) for cost in (together, alone))
        return (attention for attention in tried if attention is not None)

    def _with_rest(
        self, attention: Sequence[int], comm_s: float, head: Sequence[int] | None
    ) -> RankCounts | None:
        """The rest apportioned for the shortest token, given the attention shards.

        A head of None goes where FFN shards leave room: these are apportioned without the head, and
        again with the head where it would go without them.
        """
        if head is not None:
            return self._with_ffn(attention, comm_s, head)
        nothing = [0] * len(self.boards)
        first = self._with_head(RankCounts([*attention], nothing, nothing), comm_s)
        tried = [
            self._with_ffn(attention, comm_s, words)
            for words in (nothing, first.head if first else nothing)
        ]
        return self._best((each and self._with_head(each, comm_s) for each in tried), comm_s)

    def _with_ffn(
        self, attention: Sequence[int], comm_s: float, head: Sequence[int]
    ) -> RankCounts | None:
        """FFN shards apportioned to the boards that finish them first, given the other kinds."""
        rest = self._slowest_s("attention", attention) + comm_s + self.head_s(head)

        def cost(rank: int, shards: int) -> float:
            computed = rest + self.stage_s("ffn", rank, shards)
            return max(computed, self.disk_s(rank, Counts(attention[rank], shards, head[rank])))

        without = RankCounts([*attention], [0] * len(head), [*head])
        if math.isinf(self._slowest_disk_s(without)):
            return None
        ffn = self._assign("ffn", cost)
        return None if ffn is None else without._replace(ffn=ffn)

    def _with_head(self, shards: RankCounts, comm_s: float) -> RankCounts | None:
        """Head shards apportioned to the boards that finish them first, given the other kinds."""
        rest = self._layers_s(shards.attention, shards.ffn) + comm_s

        def cost(rank: int, count: int) -> float:
            counts = Counts(shards.attention[rank], shards.ffn[rank], count)
            return max(rest + self._sent_head_s(1, rank, count), self.disk_s(rank, counts))

        head = self._assign("head", cost)
        return None if head is None else shards._replace(head=head)

    def _assign(self, kind: str, cost: Cost) -> list[int] | None:
        """All shards of a kind with minimal largest cost; None: the boards cannot take them all."""
        count: int = getattr(self.counts, kind)
        if not self._held:
            return apportion(count, len(self.boards), cost)
        return apportion_held(count, [getattr(each, kind) for each in self._held], cost)

    def _is_held(self, attention: Sequence[int]) -> bool:
        """Whether each board has these attention shards on its disk, if `held` matters."""
        return not self._held or all(
            local.attention.issuperset(span)
            for local, span in zip(self._held, _spans(attention), strict=True)
        )
