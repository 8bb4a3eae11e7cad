"""Assign shards to boards whose memory may be short: weights that do not fit are streamed.

The time of a token is the sum over stages of the slowest board's computing, or what the slowest
disk reads for it, whichever is longer. So each shard goes to the board that would finish it first,
by its processor and its disk. Pure arithmetic.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from picoedge.planner.memory import BATCHES, Budget, Load, Reading, activation_bytes, cache_bytes
from picoedge.planner.partition import (
    Cost,
    Counts,
    all_on_hub,
    all_partitions,
    apportion,
    apportion_held,
)
from picoedge.planner.topology import BoardFacts
from picoedge.store.pages import PAGE
from picoedge.store.shards import HeldShards, Slice, Unit
from picoedge.store.window.plan import RESIDENT_BYTES, Rates, unit_count, widest

_LEAST_UNIT = 1 << 20
_MOST_UNITS = 2500  # as many as a plan streams, at most
_ROUNDING = 2 * PAGE  # of a unit that begins and ends within pages
_FEW_PARTITIONS = 200  # up to here all are tried: some milliseconds
_MOVES = 4  # of local search: later ones gain less than the estimate is good for

GatherSeconds = Callable[[Sequence[int]], float]  # seconds to gather the logits of so many, by rank


class RankCounts(NamedTuple):
    """Counts of shards by rank, for each kind."""

    attention: list[int]
    ffn: list[int]
    head: list[int]


def slice_load(load: Load, part: Slice, *, numpy: bool = False) -> Load:
    """The load of one slice, from the whole model's."""
    runs = [_cut(run, part) for run in load.runs]
    return dataclasses.replace(
        load,
        part=part,
        runs=tuple(run for run in runs if run is not None),
        numpy=load.numpy or numpy,
    )


def _cut(run: Unit, part: Slice) -> Unit | None:
    runs = {"attention": part.attention, "ffn": part.ffn, "head": part.head_shards}
    shards = runs[run.kind]
    return run.part(shards.start, shards.stop) if shards else None


def board_budget(board: BoardFacts) -> Budget:
    """The memory budget of a board."""
    return Budget(board.budget_bytes, board.fixed_bytes)


def board_reading(board: BoardFacts) -> Reading:
    """How a board reads streamed weights, and its speeds."""
    rates = Rates(board.disk_bytes_per_s, board.compute_bytes_per_s, board.unit_s)
    return Reading(board.read_io, rates, board.read_ahead_bytes)


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of a board's memory that a slice needs."""

    beside: int  # cache and buffers
    weights: int  # all resident, at most
    window: int  # the smallest it can be streamed through

    def streamed(self, room: int, reserve: int) -> float:
        """Bytes streamed for a token with `room` bytes of memory; inf: too few to run the slice.

        `reserve` is what reading needs beside its window.
        """
        free = room - self.beside
        if self.weights <= free:
            return 0.0
        kept = free - self.window - reserve
        return math.inf if kept < 0 else float(self.weights - min(kept, self.weights))


def need_of(load: Load) -> MemoryNeed:
    """The memory a slice needs, by the same rules as `plan_memory`."""
    most = max(_LEAST_UNIT, sum(run.nbytes for run in load.runs) // _MOST_UNITS)
    activations = activation_bytes(load, most, min(BATCHES[-1], load.n_ctx))
    weights = sum(_held_bytes(run) for run in load.runs)
    # Of whole width, though fewer shards may make narrower units: more of them never need less.
    unit = max((widest(run, most) * run.shard_bytes for run in load.runs), default=0)
    window = 2 * (unit + _ROUNDING)
    return MemoryNeed(cache_bytes(load) + activations, weights, window)


def _held_bytes(run: Unit) -> int:
    """Memory of a whole resident unit, at most."""
    return run.nbytes + unit_count(run, len(run.shards), RESIDENT_BYTES) * _ROUNDING


class MemoryNeeds:
    """The memory needs of slices of one model by their counts of shards, each computed once."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self._known: dict[tuple[Counts, bool, bool], MemoryNeed] = {}

    def of(self, counts: Counts, *, hub: bool, numpy: bool) -> MemoryNeed:
        """The need of a slice with these counts; a worker has at least one shard."""
        key = counts, hub, numpy
        if key not in self._known:
            self._known[key] = self._work_out(counts, hub=hub, numpy=numpy)
        return self._known[key]

    def _work_out(self, counts: Counts, *, hub: bool, numpy: bool) -> MemoryNeed:
        """Layers and head apart: all combinations of both would be far more to compute."""
        layers, head = counts._replace(head=0), Counts(0, 0, counts.head)
        if counts in (layers, head):
            runs = range(counts.attention), range(counts.ffn), range(counts.head)
            return need_of(slice_load(self.load, Slice(*runs, owns_head=hub), numpy=numpy))
        one, other, nothing = (
            self.of(each, hub=hub, numpy=numpy) for each in (layers, head, Counts(0, 0, 0))
        )
        return MemoryNeed(
            one.beside + other.beside - nothing.beside,
            one.weights + other.weights,
            max(one.window, other.window),
        )


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

    def _stage_s(self, kind: str, dealt: Sequence[int]) -> float:
        """Seconds a token of one kind with these counts by rank: the slowest board's."""
        return max(self.stage_s(kind, rank, shards) for rank, shards in enumerate(dealt))

    def head_s(self, head: Sequence[int]) -> float:
        """Seconds a token of the head with these counts, of gathering logits and sampling."""
        gathering = self._gather(head) if self._gather is not None else 0.0
        return self._stage_s("head", head) + gathering + self.boards[0].sampling_s

    def disk_s(self, rank: int, counts: Counts) -> float:
        """Seconds a token that a board's disk reads for so many shards; inf: it cannot run them."""
        if rank and counts == Counts(0, 0, 0):
            return 0.0
        board = self.boards[rank]
        need = self._needs.of(counts, hub=rank == 0, numpy=board.numpy)
        room = board.budget_bytes - board.fixed_bytes
        return need.streamed(room, board.read_ahead_bytes) / board.disk_bytes_per_s

    # -- candidates ----------------------------------------------------------------------------

    def token_s(self, hands: RankCounts, comm_s: float) -> float:
        """Seconds of a token with these counts."""
        disk = max(self.disk_s(i, Counts(*each)) for i, each in enumerate(zip(*hands, strict=True)))
        layers = self._layers_s(hands.attention, hands.ffn)
        return max(disk, layers + comm_s + self.head_s(hands.head))

    def _layers_s(self, attention: Sequence[int], ffn: Sequence[int]) -> float:
        return self._stage_s("attention", attention) + self._stage_s("ffn", ffn)

    def candidates(self, comm_s: float) -> Iterator[RankCounts]:
        """Candidate assignments, fastest first; none if the boards cannot hold the model.

        `comm_s` is what the sums take. First the best for that; then the best with all attention on
        the hub, whose sums take a hop less.
        """
        for head in self._heads():
            found = self._by_speed(head) or self._by_memory(comm_s, head)
            if found is not None:
                yield found
            own = all_on_hub(self.counts.attention, len(self.boards))
            alone = self._with_rest(own, comm_s, head)
            if alone is not None:
                yield alone

    def _heads(self) -> Iterator[list[int] | None]:
        """Partitions of the head to try; None: wherever memory is left for it."""
        count, boards = self.counts.head, len(self.boards)
        yield all_on_hub(count, boards)
        if self._gather is None or boards == 1:
            return
        dealt = [
            self._assign("head", partial(self._sent_head_s, ports)) for ports in (1, boards - 1)
        ]
        best = min((head for head in dealt if head is not None), key=self.head_s)
        yield best if self._by_speed(best) else None

    def _sent_head_s(self, ports: int, rank: int, shards: int) -> float:
        """Seconds of so many head shards, and of sending their logits over a shared port."""
        return self.stage_s("head", rank, shards) + ports * self._send_s(rank, shards)

    def _send_s(self, rank: int, shards: int) -> float:
        """Seconds to send the logits of so many head shards from one board to the hub."""
        if not rank or not shards or self._gather is None:
            return 0.0
        if (rank, shards) not in self._known_s:
            alone = [0] * rank + [shards]
            self._known_s[rank, shards] = self._gather(alone)
        return self._known_s[rank, shards]

    def _by_speed(self, head: Sequence[int] | None) -> RankCounts | None:
        """Each kind apportioned by speed, if all then fits in memory: no assignment is faster."""
        if head is None:
            return None
        attention, ffn = (
            self._assign(kind, partial(self.stage_s, kind)) for kind in ("attention", "ffn")
        )
        if attention is None or ffn is None:
            return None
        hands = RankCounts(attention, ffn, [*head])
        fits = all(
            self.disk_s(i, Counts(*each)) == 0 for i, each in enumerate(zip(*hands, strict=True))
        )
        return hands if fits else None

    def _by_memory(self, comm_s: float, head: Sequence[int] | None) -> RankCounts | None:
        """The fastest over all partitions of the attention shards, if these are few.

        Else a local search: from a good one, one shard is moved at a time.
        """
        groups, boards = self.counts.attention, len(self.boards)
        if math.comb(groups + boards - 1, boards - 1) <= _FEW_PARTITIONS:
            return self._quickest(all_partitions(groups, boards), comm_s, head)
        best = self._quickest(self._near(comm_s, head), comm_s, head)
        for _ in range(_MOVES if best is not None else 0):
            assert best is not None
            better = self._quickest(_moved(best.attention), comm_s, head)
            if better is None or self.token_s(better, comm_s) >= self.token_s(best, comm_s):
                break
            best = better
        return best

    def _quickest(
        self, attentions: Iterable[Sequence[int]], comm_s: float, head: Sequence[int] | None
    ) -> RankCounts | None:
        """The best of these partitions of the attention shards, the rest apportioned to each."""
        held = (attention for attention in attentions if self._is_held(attention))
        found = (self._with_rest(attention, comm_s, head) for attention in held)
        able = (hands for hands in found if hands is not None)
        return min(able, key=lambda hands: self.token_s(hands, comm_s), default=None)

    def _near(self, comm_s: float, head: Sequence[int] | None) -> Iterator[list[int]]:
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

        for cost in (together, alone):
            hand = self._assign("attention", cost)
            if hand is not None:
                yield hand

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
        dealt = [
            self._with_ffn(attention, comm_s, words)
            for words in (nothing, first.head if first else nothing)
        ]
        found = [self._with_head(hands, comm_s) for hands in dealt if hands is not None]
        able = [hands for hands in found if hands is not None]
        return min(able, key=lambda hands: self.token_s(hands, comm_s), default=None)

    def _with_ffn(
        self, attention: Sequence[int], comm_s: float, head: Sequence[int]
    ) -> RankCounts | None:
        """FFN shards apportioned to the boards that finish them first, given the other kinds."""
        rest = self._stage_s("attention", attention) + comm_s + self.head_s(head)

        def cost(rank: int, shards: int) -> float:
            computed = rest + self.stage_s("ffn", rank, shards)
            return max(computed, self.disk_s(rank, Counts(attention[rank], shards, head[rank])))

        given = zip(attention, head, strict=True)
        if any(math.isinf(self.disk_s(i, Counts(a, 0, h))) for i, (a, h) in enumerate(given)):
            return None
        ffn = self._assign("ffn", cost)
        return None if ffn is None else RankCounts([*attention], ffn, [*head])

    def _with_head(self, hands: RankCounts, comm_s: float) -> RankCounts | None:
        """Head shards apportioned to the boards that finish them first, given the other kinds."""
        rest = self._layers_s(hands.attention, hands.ffn) + comm_s

        def cost(rank: int, shards: int) -> float:
            counts = Counts(hands.attention[rank], hands.ffn[rank], shards)
            return max(rest + self._sent_head_s(1, rank, shards), self.disk_s(rank, counts))

        head = self._assign("head", cost)
        return None if head is None else hands._replace(head=head)

    def _assign(self, kind: str, cost: Cost) -> list[int] | None:
        """All shards of a kind with minimal largest cost; None: the boards cannot take them all."""
        count: int = getattr(self.counts, kind)
        if not self._held:
            return apportion(count, len(self.boards), cost)
        return apportion_held(count, [getattr(each, kind) for each in self._held], cost)

    def _is_held(self, attention: Sequence[int]) -> bool:
        """Whether each board has these attention shards on its disk, if `held` matters."""
        ends = itertools.accumulate(attention)
        runs = (range(end - size, end) for size, end in zip(attention, ends, strict=True))
        return not self._held or all(
            has.attention.issuperset(run) for has, run in zip(self._held, runs, strict=True)
        )


def counts_of(part: Slice) -> Counts:
    """The counts of a slice's shards."""
    return Counts(len(part.attention), len(part.ffn), len(part.head_shards))


def _moved(attention: Sequence[int]) -> Iterator[list[int]]:
    """All partitions in which one shard has moved."""
    for giver, taker in itertools.permutations(range(len(attention)), 2):
        if attention[giver]:
            moved = [*attention]
            moved[giver] -= 1
            moved[taker] += 1
            yield moved
