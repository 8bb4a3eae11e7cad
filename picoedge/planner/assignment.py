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

from picoedge.planner.memory import Counts, MemoryNeeds
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
    """Numbers of shards, of `count`, that the boards take, the largest cost being minimal.

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
            for size in range(count - begin + 1):
                if size and begin + size - 1 not in local:
                    break
                own = cost(board, size) if size else 0.0
                if math.isinf(own):
                    break
                each = max(largest, own), (*sizes, size)
                extended[begin + size] = min(each, extended.get(begin + size, each))
        best = extended
    return list(best[count][1]) if count in best else None


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

    `comm_s`: seconds a token that its sums take. The hub has the head; with a `gather` (seconds to
    collect the logits), it may be split as well. With `held`, by rank, a board gets only shards
    that it has on its disk.
    """

    def __init__(
        self,
        needs: MemoryNeeds,
        boards: Sequence[BoardFacts],
        comm_s: float = 0.0,
        gather: GatherSeconds | None = None,
        held: Sequence[HeldShards] = (),
    ) -> None:
        self.boards, self.counts = tuple(boards), needs.counts
        self._needs, self._comm_s, self._gather, self._held = needs, comm_s, gather, held
        self._known_s: dict[tuple[int, int], float] = {}

    def stage_s(self, kind: str, rank: int, shards: int) -> float:
        """Seconds a token that a board computes for so many shards of a kind, over all layers."""
        if not shards:
            return 0.0
        board, nbytes = self.boards[rank], self._needs.shard_bytes[kind] * shards
        runs = 1 if kind == "head" else self._needs.load.config.num_hidden_layers
        return nbytes / board.compute_bytes_per_s + runs * board.unit_s

    def _slowest_s(self, kind: str, partition: Sequence[int]) -> float:
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

    def token_s(self, shards: RankCounts) -> float:
        """Seconds of a token with these counts."""
        layers = self._layers_s(shards.attention, shards.ffn)
        return max(self._slowest_disk_s(shards), layers + self._comm_s + self.head_s(shards.head))

    def candidates(self) -> Iterator[RankCounts]:
        """Candidate assignments; none if the boards cannot hold the model.

        First the best for the sums as they are; then the best with all attention on the hub, whose
        sums take a hop less.
        """
        on_hub = all_on_hub(self.counts.attention, len(self.boards))
        for head in self._heads():
            best = self._by_speed(head) or self._by_memory(head)
            yield from filter(None, (best, self._with_rest(on_hub, head)))

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

    def _by_memory(self, head: Sequence[int] | None) -> RankCounts | None:
        """The fastest over all partitions of the attention shards, if these are few.

        Else a local search: from a good one, one shard is moved at a time.
        """
        groups, boards = self.counts.attention, len(self.boards)
        if math.comb(groups + boards - 1, boards - 1) <= _FEW_PARTITIONS:
            return self._fastest(all_partitions(groups, boards), head)
        best = self._fastest(self._good_partitions(head), head)
        for _ in range(_MOVES):
            better = best and self._fastest(_moved(best.attention), head)
            if best is None or better is None or self.token_s(better) >= self.token_s(best):
                break
            best = better
        return best

    def _fastest(
        self, attentions: Iterable[Sequence[int]], head: Sequence[int] | None
    ) -> RankCounts | None:
        """The best of these partitions of the attention shards, the rest apportioned to each."""
        return self._best(self._with_rest(each, head) for each in attentions if self._is_held(each))

    def _best(self, assigned: Iterable[RankCounts | None]) -> RankCounts | None:
        return min(filter(None, assigned), key=self.token_s, default=None)

    def _good_partitions(self, head: Sequence[int] | None) -> Iterator[list[int]]:
        """Attention shards apportioned with their proportion of FFN shards.

        Then by free memory alone, ignoring FFN shards.
        """
        counts, words = self.counts, head or [0] * len(self.boards)

        def together(rank: int, shards: int) -> float:
            beside = counts.ffn * shards // counts.attention
            own = self.stage_s("attention", rank, shards) + self.stage_s("ffn", rank, beside)
            return max(own + self._comm_s, self.disk_s(rank, Counts(shards, beside, words[rank])))

        def alone(rank: int, shards: int) -> float:
            return self.disk_s(rank, Counts(shards, 0, words[rank]))

        return filter(None, (self._assign("attention", cost) for cost in (together, alone)))

    def _with_rest(self, attention: Sequence[int], head: Sequence[int] | None) -> RankCounts | None:
        """The rest apportioned for the shortest token, given the attention shards.

        A head of None goes where FFN shards leave room: these are apportioned without the head, and
        again with the head where it would go without them.
        """
        nothing = [0] * len(self.boards)
        given = RankCounts([*attention], nothing, [*(head or nothing)])
        first = self._apportion("ffn", given)
        if head is not None:
            return first
        with_head = self._apportion("head", given)
        second = with_head and self._apportion("ffn", with_head)
        return self._best(each and self._apportion("head", each) for each in (first, second))

    def _apportion(self, kind: str, others: RankCounts) -> RankCounts | None:
        """FFN or head shards apportioned to the boards that finish them first, given the others."""
        if math.isinf(self._slowest_disk_s(others)):
            return None
        rest_s = self._layers_s(others.attention, others.ffn) + self._comm_s
        if kind == "ffn":
            rest_s += self.head_s(others.head)
            computing_s = partial(self.stage_s, "ffn")
        else:
            computing_s = partial(self._sent_head_s, 1)
        given = [Counts(*counts) for counts in zip(*others, strict=True)]

        def cost(rank: int, shards: int) -> float:
            counts = given[rank]._replace(**{kind: shards})
            return max(rest_s + computing_s(rank, shards), self.disk_s(rank, counts))

        assigned = self._assign(kind, cost)
        return None if assigned is None else others._replace(**{kind: assigned})

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
