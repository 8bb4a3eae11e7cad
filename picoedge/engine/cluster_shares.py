"""Who takes which shards where memory is short: more than fits is read again for every token.

The time of a token is the slowest board's of each stage, or the time the slowest disk reads for
it, whichever is longer. So each shard is dealt to whoever has it done first, by the processor and
by the disk. Pure arithmetic.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from picoedge.engine.cluster_facts import BoardFacts
from picoedge.engine.dealing import Cost, Counts, assign, assign_held, dealings, slices_of
from picoedge.engine.planning import BATCHES, Budget, Load, Reading, activation_bytes, cache_bytes
from picoedge.store.pages import PAGE
from picoedge.store.slices import Held, Slice
from picoedge.store.units import Unit
from picoedge.store.window_plan import RESIDENT_BYTES, Rates, piece_count, widest

_LEAST_UNIT = 1 << 20
_MOST_UNITS = 2500  # as many as a plan streams, at most
_ROUNDING = 2 * PAGE  # of a unit that begins and ends within pages
_FEW_DEALINGS = 200  # that are all tried
_MOVES = 4

Hands = tuple[list[int], list[int]]  # attention and FFN shards of each board, by rank


def sliced(load: Load, part: Slice, *, numpy: bool = False) -> Load:
    """What a board runs of a whole model's load."""
    runs = [_cut(run, part) for run in load.runs]
    return dataclasses.replace(
        load,
        part=part,
        runs=tuple(run for run in runs if run is not None),
        numpy=load.numpy or numpy,
    )


def _cut(run: Unit, part: Slice) -> Unit | None:
    if run.kind == "head":
        return run if part.head else None
    shards = part.attention if run.kind == "attention" else part.ffn
    return run.part(shards.start, shards.stop) if shards else None


def board_budget(board: BoardFacts) -> Budget:
    """What a board's plan is made with."""
    return Budget(board.budget_bytes, board.fixed_bytes)


def board_reading(board: BoardFacts) -> Reading:
    """How a board reads what does not stay in its memory, and its speeds."""
    rates = Rates(board.disk_bytes_per_s, board.compute_bytes_per_s, board.unit_s)
    return Reading(board.read_io, rates, board.read_ahead_bytes)


@dataclass(frozen=True)
class Need:
    """What a slice takes of a board's memory."""

    beside: int  # cache and buffers
    weights: int  # all resident, at most
    window: int  # the smallest it can be streamed through

    def streamed(self, room: int, reserve: int) -> float:
        """Bytes read for a token where there is so much room; inf: too little to run it at all.

        `reserve` is what reading takes beside its window.
        """
        free = room - self.beside
        if self.weights <= free:
            return 0.0
        kept = free - self.window - reserve
        return math.inf if kept < 0 else float(self.weights - min(kept, self.weights))


def need_of(load: Load) -> Need:
    """What a slice needs, from the figures that `plan_memory` goes by."""
    most = max(_LEAST_UNIT, sum(run.nbytes for run in load.runs) // _MOST_UNITS)
    activations = activation_bytes(load, most, min(BATCHES[-1], load.n_ctx))
    weights = sum(_held_bytes(run) for run in load.runs)
    # Of whole width, though fewer shards may make narrower units: more of them never need less.
    unit = max((widest(run, most) * run.shard_bytes for run in load.runs), default=0)
    window = 2 * (unit + _ROUNDING)
    return Need(cache_bytes(load) + activations, weights, window)


def _held_bytes(run: Unit) -> int:
    """Memory of a whole run, at most."""
    return run.nbytes + piece_count(run, len(run.shards), RESIDENT_BYTES) * _ROUNDING


class Needs:
    """The needs of slices of one model by their size, each worked out once."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self._known: dict[tuple[int, int, bool, bool], Need] = {}

    def of(self, attention: int, ffn: int, *, head: bool, numpy: bool) -> Need:
        """The need of so many shards; a worker has at least one."""
        key = attention, ffn, head, numpy
        if key not in self._known:
            part = Slice(range(attention), range(ffn), head=head)
            self._known[key] = need_of(sliced(self.load, part, numpy=numpy))
        return self._known[key]


class Boards:
    """The boards of one session by rank, the hub being rank 0, and what each makes of shards."""

    def __init__(self, needs: Needs, boards: Sequence[BoardFacts]) -> None:
        load = needs.load
        self.boards, self._needs = tuple(boards), needs
        self.counts = Counts(len(load.part.attention), len(load.part.ffn))
        self._bytes = dict.fromkeys(("attention", "ffn", "head"), 0)
        for run in load.runs:
            self._bytes[run.kind] += run.nbytes
        self._layers = load.config.num_hidden_layers

    def stage_s(self, kind: str, rank: int, shards: int) -> float:
        """Seconds a token that one kind of shards takes a board, over all layers."""
        if not shards:
            return 0.0
        board = self.boards[rank]
        count = self.counts.attention if kind == "attention" else self.counts.ffn
        nbytes = self._bytes[kind] * shards / count
        return nbytes / board.compute_bytes_per_s + self._layers * board.unit_s

    @property
    def head_s(self) -> float:
        """Seconds a token of the head, and of picking one: the hub's."""
        hub = self.boards[0]
        return self._bytes["head"] / hub.compute_bytes_per_s + hub.unit_s + hub.sampling_s

    def disk_s(self, rank: int, attention: int, ffn: int) -> float:
        """Seconds a token that a board's disk reads for so many shards; inf: it cannot run them."""
        if rank and not attention and not ffn:
            return 0.0
        board = self.boards[rank]
        need = self._needs.of(attention, ffn, head=rank == 0, numpy=board.numpy)
        room = board.budget_bytes - board.fixed_bytes
        return need.streamed(room, board.read_ahead_bytes) / board.disk_bytes_per_s

    # -- dealing -------------------------------------------------------------------------------

    def token_s(self, hands: Hands, sync_s: float) -> float:
        """Seconds of a token with the shards dealt so."""
        ranks, (attention, ffn) = range(len(self.boards)), hands
        disk = max(self.disk_s(i, attention[i], ffn[i]) for i in ranks)
        stages = (
            max(self.stage_s(kind, i, dealt[i]) for i in ranks)
            for kind, dealt in (("attention", attention), ("ffn", ffn))
        )
        return max(disk, sum(stages) + sync_s + self.head_s)

    def ways(self, sync_s: float) -> Iterator[Hands]:
        """Dealings with short tokens; none where the boards cannot hold the model.

        `sync_s` is what the sums take. First the best found for that; then the best with all
        attention on the hub, whose sums take a hop less.
        """
        found = self._by_speed() or self._by_memory(sync_s)
        if found is not None:
            yield found
        alone = self._with_ffn(self._on_hub, sync_s)
        if alone is not None:
            yield alone

    def held_ways(self, held: Sequence[Held], sync_s: float) -> Iterator[Hands]:
        """As `ways`, of shards that the boards have: `held`, by rank."""
        found = self._quickest(self._held_attentions(held, sync_s), sync_s, held)
        if found is not None:
            yield found
        alone = self._with_ffn(self._on_hub, sync_s, held)
        if alone is not None:
            yield alone

    def _held_attentions(self, held: Sequence[Held], sync_s: float) -> Iterable[Sequence[int]]:
        if not self._are_few:
            return self._near(sync_s, held)
        no_ffn = [0] * len(held)
        return [
            each
            for each in dealings(self.counts.attention, len(held))
            if all(
                has.attention.issuperset(part.attention)
                for has, part in zip(held, slices_of(each, no_ffn), strict=True)
            )
        ]

    def _by_speed(self) -> Hands | None:
        """Each kind by itself, where all of it stays in memory so: no dealing is quicker."""
        attention, ffn = (
            assign(count, len(self.boards), partial(self.stage_s, kind))
            for kind, count in (("attention", self.counts.attention), ("ffn", self.counts.ffn))
        )
        assert attention is not None
        assert ffn is not None
        fits = all(
            self.disk_s(i, *each) == 0 for i, each in enumerate(zip(attention, ffn, strict=True))
        )
        return (attention, ffn) if fits else None

    def _by_memory(self, sync_s: float) -> Hands | None:
        """The quickest over all dealings of attention shards where these are few.

        Else from one that is near, by moving one of them at a time.
        """
        if self._are_few:
            every = dealings(self.counts.attention, len(self.boards))
            return self._quickest(every, sync_s)
        best = self._quickest(self._near(sync_s), sync_s)
        for _ in range(_MOVES if best is not None else 0):
            assert best is not None
            better = self._quickest(_moved(best[0]), sync_s)
            if better is None or self.token_s(better, sync_s) >= self.token_s(best, sync_s):
                break
            best = better
        return best

    @property
    def _are_few(self) -> bool:
        """Whether all dealings of attention shards can be tried."""
        groups, boards = self.counts.attention, len(self.boards)
        return math.comb(groups + boards - 1, boards - 1) <= _FEW_DEALINGS

    @property
    def _on_hub(self) -> list[int]:
        """All attention shards on the hub."""
        return [self.counts.attention] + [0] * (len(self.boards) - 1)

    def _quickest(
        self, attentions: Iterable[Sequence[int]], sync_s: float, held: Sequence[Held] = ()
    ) -> Hands | None:
        """The best of these dealings of attention shards, each with the FFN dealt for it."""
        found = (self._with_ffn(attention, sync_s, held) for attention in attentions)
        able = (hands for hands in found if hands is not None)
        return min(able, key=lambda hands: self.token_s(hands, sync_s), default=None)

    def _near(self, sync_s: float, held: Sequence[Held] = ()) -> Iterator[list[int]]:
        """Attention shards, each with as many FFN shards as there are to one of them.

        Then wherever there is room for them, whatever becomes of the others.
        """
        counts = self.counts

        def together(rank: int, shards: int) -> float:
            beside = counts.ffn * shards // counts.attention
            own = self.stage_s("attention", rank, shards) + self.stage_s("ffn", rank, beside)
            return max(own + sync_s, self.disk_s(rank, shards, beside))

        for cost in (together, lambda rank, shards: self.disk_s(rank, shards, 0)):
            hand = self._assign("attention", cost, held)
            if hand is not None:
                yield hand

    def _assign(self, kind: str, cost: Cost, held: Sequence[Held]) -> list[int] | None:
        """All shards of a kind dealt; where it is said what boards have, of that."""
        count: int = getattr(self.counts, kind)
        if not held:
            return assign(count, len(self.boards), cost)
        return assign_held(count, [getattr(each, kind) for each in held], cost)

    def _with_ffn(
        self, attention: Sequence[int], sync_s: float, held: Sequence[Held] = ()
    ) -> Hands | None:
        """The FFN shards dealt for the shortest token, given the attention shards."""
        ranks = range(len(self.boards))
        stage = max(self.stage_s("attention", i, attention[i]) for i in ranks)
        rest = stage + sync_s + self.head_s

        def cost(rank: int, shards: int) -> float:
            computed = rest + self.stage_s("ffn", rank, shards)
            return max(computed, self.disk_s(rank, attention[rank], shards))

        if any(math.isinf(self.disk_s(i, attention[i], 0)) for i in ranks):
            return None
        ffn = self._assign("ffn", cost, held)
        return None if ffn is None else (list(attention), ffn)


def _moved(attention: Sequence[int]) -> Iterator[list[int]]:
    """All dealings in which one shard is elsewhere."""
    for giver, taker in itertools.permutations(range(len(attention)), 2):
        if attention[giver]:
            moved = [*attention]
            moved[giver] -= 1
            moved[taker] += 1
            yield moved
