"""Who takes which shards where memory is short: more than fits is read again for every token.

The time of a token is the slowest board's of each stage, or the time the slowest disk reads for
it, whichever is longer. So each shard is dealt to whoever has it done first, by the processor and
by the disk. Pure arithmetic.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from picoedge.engine.cluster_facts import BoardFacts
from picoedge.engine.dealing import Counts, assign
from picoedge.engine.planning import BATCHES, Budget, Load, Reading, activation_bytes, cache_bytes
from picoedge.store.pages import PAGE
from picoedge.store.slices import Slice
from picoedge.store.units import Unit
from picoedge.store.window_plan import RESIDENT_BYTES, Rates, piece_count, smallest_window

_LEAST_UNIT = 1 << 20
_MOST_UNITS = 2500  # as many as a plan streams, at most
_ROUNDING = 2 * PAGE  # of a unit that begins and ends within pages
_ROUNDS = 3  # of dealing one kind while the other stays as it is


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
    alike = {(run.kind, run.shard_bytes): run for run in load.runs}  # most layers are
    window = smallest_window(tuple(alike.values()), most) + _ROUNDING
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

    def stage_s(self, rank: int, kind: str, shards: int) -> float:
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

    def token_s(self, attention: Sequence[int], ffn: Sequence[int], sync_s: float) -> float:
        """Seconds of a token with the shards dealt so."""
        ranks = range(len(self.boards))
        disk = max(self.disk_s(i, attention[i], ffn[i]) for i in ranks)
        stages = (
            max(self.stage_s(i, kind, dealt[i]) for i in ranks)
            for kind, dealt in (("attention", attention), ("ffn", ffn))
        )
        return max(disk, sum(stages) + sync_s + self.head_s)

    def ways(self, sync_s: float) -> Iterator[tuple[list[int], list[int]]]:
        """Attention and FFN shards of each board, for short tokens; none where they cannot be held.

        `sync_s` is what the sums take. Exact in each kind given the other, the two being dealt in
        turn; and once with all attention on the hub, whose sums then take a hop less.
        """
        shared = self._spread(sync_s)
        if shared is not None:
            yield self._improved(shared, sync_s)
        alone = [self.counts.attention] + [0] * (len(self.boards) - 1)
        ffn = self._dealt("ffn", alone, sync_s)
        if ffn is not None and self.token_s(alone, ffn, sync_s) < math.inf:
            yield alone, ffn

    def _spread(self, sync_s: float) -> tuple[list[int], list[int]] | None:
        """Attention shards, each with as many FFN shards as there are to one, then these anew."""
        counts = self.counts

        def cost(rank: int, shards: int) -> float:
            beside = counts.ffn * shards // counts.attention
            own = self.stage_s(rank, "attention", shards) + self.stage_s(rank, "ffn", beside)
            return max(own + sync_s, self.disk_s(rank, shards, beside))

        def bare(rank: int, shards: int) -> float:
            return self.disk_s(rank, shards, 0)

        for way in (cost, bare):  # at last wherever there is room, whatever becomes of the others
            attention = assign(counts.attention, len(self.boards), way)
            ffn = attention and self._dealt("ffn", attention, sync_s)
            if attention and ffn and self.token_s(attention, ffn, sync_s) < math.inf:
                return attention, ffn
        return None

    def _improved(
        self, dealt: tuple[list[int], list[int]], sync_s: float
    ) -> tuple[list[int], list[int]]:
        """Each kind dealt again for the other, as long as that helps."""
        for _ in range(_ROUNDS):
            attention = self._dealt("attention", dealt[1], sync_s)
            ffn = attention and self._dealt("ffn", attention, sync_s)
            if not attention or not ffn:
                break
            if self.token_s(attention, ffn, sync_s) >= self.token_s(*dealt, sync_s):
                break
            dealt = attention, ffn
        return dealt

    def _dealt(self, kind: str, other: Sequence[int], sync_s: float) -> list[int] | None:
        """Shards of a kind dealt for the shortest token, those of the other kind being given."""
        ffn = kind == "ffn"
        beside = "attention" if ffn else "ffn"
        rest = max(self.stage_s(rank, beside, n) for rank, n in enumerate(other)) + sync_s

        def cost(rank: int, shards: int) -> float:
            pair = (other[rank], shards) if ffn else (shards, other[rank])
            return max(rest + self.stage_s(rank, kind, shards), self.disk_s(rank, *pair))

        return assign(self.counts.ffn if ffn else self.counts.attention, len(self.boards), cost)
