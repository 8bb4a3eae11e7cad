"""Steps and sums as the simulator of agreement has them, with hand-over of micro-batches.

A micro-batch is a number, a sum the list of contributions by board, and the state of a segment is
a hash of its history: two boards with the same hash have applied the same sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from picoedge.mesh.consensus import duty as rules
from picoedge.mesh.consensus.configuration import (
    BoardId,
    Configuration,
    ConfigurationId,
    Epoch,
    Snapshot,
)
from picoedge.mesh.consensus.duty import Place

MICRO_BATCHES = 6
ALL = (1 << MICRO_BATCHES) - 1
SEGMENTS = 3
KEPT = 6  # steps whose sums and digests are kept
CHECKPOINT_STEPS = 5
OFFER_S = 1.5  # until a micro-batch that was offered and not taken is taken back

Sums = dict[int, tuple[tuple[int, str], ...]]  # segment: (micro-batch, board's key)
Digests = tuple[int, ...]
Checkpoint = tuple[Snapshot, Digests]


def bits(mask: int) -> list[int]:
    """The numbers of a set of micro-batches."""
    return [b for b in range(MICRO_BATCHES) if mask >> b & 1]


def deal(configuration: Configuration, step: int) -> dict[BoardId, int]:
    """Each member's micro-batches: what it holds already, the rest by weight."""
    members = configuration.members
    own = dict.fromkeys(members, 0)
    if step == configuration.start:
        own = dict(zip(members, configuration.holdings, strict=True))
    weights = dict(zip(members, configuration.weights, strict=True))
    taken = 0
    for held in own.values():
        taken |= held
    for b in bits(ALL & ~taken):
        least = min(members, key=lambda m: (own[m].bit_count() + 1) / max(1, weights[m]))
        own[least] |= 1 << b
    return own


def owners_of(configuration: Configuration) -> tuple[BoardId, ...]:
    """The member that sums up each segment."""
    owners: list[BoardId] = []
    for member, share in zip(configuration.members, configuration.shares, strict=True):
        owners += [member] * share
    return tuple(owners)


class Step:
    """The running step, and the state that it moves. `Worker` says what is done and when."""

    def __init__(self, me: BoardId, shell: Any, checkpoint: Checkpoint, now: Callable[[], float]):
        self.me, self.shell, self.now = me, shell, now
        self.checkpoint = checkpoint
        self.known: Configuration | None = None
        self.known_id: ConfigurationId | None = None
        self.running: Configuration | None = None
        self.run_id: ConfigurationId | None = None
        self.owners: tuple[BoardId, ...] = ()
        self.frozen: Epoch | None = None
        self.fence: int | None = None
        self.progress = 0
        self.is_witness = False
        # The state; `step` and the rest mean nothing without `live`.
        self.live = False
        self.step = 0
        self.digests: dict[int, Digests] = {}
        self.makers: dict[int, ConfigurationId | None] = {}  # whose sum led to a step
        self.last: dict[int, tuple[ConfigurationId, Sums]] = {}  # the sum that leads on from a step
        self.sums: dict[tuple[ConfigurationId, int], Sums] = {}
        self.parts: dict[
            tuple[ConfigurationId, int, int], dict[BoardId, tuple[Any, tuple[int, ...]]]
        ] = {}
        self.mine: dict[tuple[ConfigurationId, int, int], tuple[tuple[int, str], ...]] = {}
        # The running step.
        self.todo: list[int] = []
        self.done = 0
        self.extra: list[int] = []
        self.offered: dict[int, float] = {}
        self.dropped: dict[int, int] = {}
        self.busy: int | None = None
        self.closed = False
        # A learner: each segment at its own step, and what was heard of sums.
        self.pulled: dict[int, tuple[int, int, ConfigurationId | None]] = {}
        self.heard: dict[int, dict[ConfigurationId, tuple[ConfigurationId | None, Sums]]] = {}
        self.seen_step = 0
        self.proof = False
        self.pulls = 0

    def place(self) -> Place:
        """Where this worker stands, for the rules."""
        return Place(self.snapshot(), self.running, self.frozen, self.checkpoint[0])

    def snapshot(self) -> Snapshot | None:
        """The name of the state."""
        if not self.live:
            return None
        made_by = self.makers.get(self.step)
        if made_by is None:
            return Snapshot(self.checkpoint_generation(), self.step, None)
        return Snapshot(made_by.epoch.generation, self.step, made_by)

    def checkpoint_generation(self) -> Any:
        """The generation of a state that no sum has led to: the run's beginning."""
        assert self.known is not None
        return self.known.epoch.generation._replace(number=0, maker=BoardId("", 0))

    def begin(self, kept: int = 0) -> None:
        """Begin a step: what is dealt is a function of the configuration and the step."""
        assert self.running is not None
        own = deal(self.running, self.step)[self.me]
        self.done = kept & own
        self.todo = bits(own & ~self.done)
        self.extra, self.offered, self.dropped, self.mine = [], {}, {}, {}
        self.busy, self.closed = None, False
        self.shell.reported()
        self.work()

    def may_move(self) -> bool:
        """Whether the running configuration may move the state."""
        return self.known is not None and rules.may_move(self.known, self.place())

    def is_fenced(self) -> bool:
        """Whether nothing may be contributed to this step."""
        return self.fence is not None and self.step >= self.fence

    def work(self) -> None:
        """Compute the next micro-batch, or close the set and send it."""
        if self.busy is not None or self.is_fenced() or not self.may_move():
            return
        if self.todo:
            self.busy = self.todo.pop(0)
            self.shell.compute(self.run_id, self.step, self.busy)
        elif not self.offered:
            self.close()

    def close(self) -> None:
        """Say what was done; offer to do what others have not begun."""
        assert self.running is not None
        if not self.closed:
            self.closed = True
            self.cast(self.running.members, ("spare", self.run_id, self.step))
        self.send_parts()

    def computed(self, identity: ConfigurationId, step: int, batch: int) -> None:
        """A micro-batch is finished."""
        if (identity, step) != (self.run_id, self.step) or self.busy != batch:
            return
        self.busy, self.progress = None, self.progress + 1
        self.done |= 1 << batch
        if self.closed:
            self.extra.append(1 << batch)
            if self.may_move():
                self.send_parts()
        self.work()

    def send_parts(self) -> None:
        """Each segment's part to its owner, as sets of micro-batches that can be told apart."""
        late = 0
        for one in self.extra:
            late |= one
        for r, owner in enumerate(self.owners):
            drop = self.dropped.get(r, 0)
            sets = tuple(s & ~drop for s in (self.done & ~late, *self.extra) if s & ~drop)
            version = (len(self.extra), drop.bit_count())
            self.send(owner, ("part", self.run_id, self.step, r, version, sets))

    def reduce(self) -> None:
        """As an owner: add disjoint sets until all micro-batches are there."""
        if self.is_fenced() or not self.may_move():
            return
        for r, owner in enumerate(self.owners):
            key = (self.run_id, self.step, r)
            if owner == self.me and key not in self.mine:
                self.reduce_segment(r, key)

    def reduce_segment(self, r: int, key: Any) -> None:
        """One segment's sum, if it is whole."""
        assert self.running is not None
        parts = self.parts.get(key, {})
        taken, have = 0, []
        for member in self.running.members:
            for one in parts.get(member, ((), ()))[1]:
                if one & taken and not self.adds_twice():
                    self.shell.note("complement")
                    self.send(member, ("complement", key, one & taken))
                    continue
                taken |= one
                have += [(b, member.key) for b in bits(one)]
        if self.is_whole(taken, len(parts)):
            self.mine[key] = tuple(sorted(have))
            self.send_sum(r, self.mine[key])

    def is_whole(self, taken: int, parts: int) -> bool:
        """Whether each micro-batch is in the sum."""
        del parts
        return taken == ALL

    def adds_twice(self) -> bool:
        """Whether sets are added without a look at what is in them."""
        return False

    def send_sum(self, r: int, values: tuple[tuple[int, str], ...]) -> None:
        """A sum goes to all members and learners, with the maker of the state it belongs to."""
        assert self.running is not None
        made_by = self.makers.get(self.step)
        frame = ("sum", self.run_id, self.step, r, values, made_by)
        self.cast((*self.running.members, *self.running.learners), frame, itself=True)

    def complete(self) -> None:
        """Apply whole sums, as long as that is allowed."""
        while not self.is_fenced() and self.may_move():
            sums = self.sums.get((self.run_id, self.step), {})  # type: ignore[arg-type]
            if len(sums) < SEGMENTS:
                return
            assert self.run_id is not None
            before = self.running
            self.move(sums, self.run_id)
            self.settle()
            if self.running is before and self.may_move():
                self.begin()  # another configuration's step has begun already

    def move(self, sums: Sums, made_by: ConfigurationId) -> None:
        """Apply a whole sum: the state is one step further."""
        old = self.digests[self.step]
        digests = tuple(hash((old[r], r, made_by, sums[r])) for r in range(SEGMENTS))
        self.last[self.step] = made_by, dict(sums)
        self.step += 1
        self.digests[self.step], self.makers[self.step] = digests, made_by
        self.busy, self.closed = None, False
        self.done, self.todo, self.extra = 0, [], []
        self.progress += 1
        self.shell.note("applied", self.step, digests, old, made_by, sums)
        self.keep_checkpoint(made_by)
        self.forget()

    def keep_checkpoint(self, made_by: ConfigurationId) -> None:
        """A step is final when the next is complete: then it may be kept, on two boards or more."""
        final, running = self.step - 1, self.running
        if running is None or self.me not in running.members or final % CHECKPOINT_STEPS:
            return
        if running.members.index(self.me) > max(1, len(running.members) // 2):
            return
        maker = self.makers.get(final)
        generation = maker.epoch.generation if maker else self.checkpoint_generation()
        found = Snapshot(generation, final, maker), self.digests[final]
        if (generation, final) > (self.checkpoint[0].generation, self.checkpoint[0].step):
            self.shell.checkpoint(found)

    def forget(self) -> None:
        """Keep the last few steps."""
        least = self.step - KEPT
        for kept in (self.digests, self.makers, self.last):
            for step in [step for step in kept if step < least]:
                del kept[step]
        for frames in (self.sums, self.parts):
            for key in [key for key in frames if key[1] < least]:
                del frames[key]
        for step in [step for step in self.heard if step < least]:
            del self.heard[step]

    def send(self, to: BoardId, frame: Any) -> None:
        """Send to one board; to this one too it is an event of its own."""
        self.shell.send(to.key, frame)

    def cast(self, boards: Iterable[BoardId], frame: Any, *, itself: bool = False) -> None:
        """Send to all other boards and, if asked, to this one."""
        for board in boards:
            if itself or board.key != self.me.key:
                self.shell.send(board.key, frame)

    def on(self, sender: BoardId, frame: Any) -> None:
        """A frame of another worker."""
        getattr(self, "on_" + frame[0])(sender, *frame[1:])

    def on_part(
        self, sender: BoardId, identity: ConfigurationId, step: int, r: int, version: Any, sets: Any
    ) -> None:
        """Keep the newest of each member; frames of a configuration to come too."""
        parts = self.parts.setdefault((identity, step, r), {})
        if sender not in parts or version > parts[sender][0]:
            parts[sender] = version, sets
            self.progress += 1
            if (identity, step) == (self.run_id, self.step):
                self.reduce()

    def on_complement(self, sender: BoardId, key: Any, both: int) -> None:
        """The owner has some of these micro-batches of another board."""
        del sender
        if key[:2] == (self.run_id, self.step) and self.closed and self.may_move():
            before = self.dropped.get(key[2], 0)
            if both & ~before:
                self.dropped[key[2]] = before | both
                self.send_parts()

    def on_sum(
        self,
        sender: BoardId,
        identity: ConfigurationId,
        step: int,
        r: int,
        values: Any,
        made_by: Any,
    ) -> None:
        """A segment's sum."""
        del sender
        self.seen_step = max(self.seen_step, step)
        if self.live or (self.known is not None and self.me in self.known.members):
            sums = self.sums.setdefault((identity, step), {})
            if r not in sums:
                sums[r] = values
                self.progress += 1
        if self.live and self.running is not None:
            self.complete()
        else:
            self.hear(identity, step, {r: values}, made_by)

    def on_spare(self, sender: BoardId, identity: ConfigurationId, step: int) -> None:
        """Another has nothing to do: offer the last micro-batch that is not begun."""
        if (identity, step) == (self.run_id, self.step) and self.todo and not self.closed:
            batch = self.todo.pop()
            self.offered[batch] = self.now()
            self.send(sender, ("give", identity, step, batch))

    def on_give(self, sender: BoardId, identity: ConfigurationId, step: int, batch: int) -> None:
        """Take a micro-batch; a repeated offer is ignored, also while it is computed."""
        fresh = batch != self.busy and batch not in self.todo and not self.done >> batch & 1
        here = (identity, step) == (self.run_id, self.step) and self.closed
        if here and fresh and self.may_move():
            self.todo.append(batch)
            self.work()
            self.send(sender, ("take", identity, step, batch))

    def on_take(self, sender: BoardId, identity: ConfigurationId, step: int, batch: int) -> None:
        """The offer is taken: the set can be closed."""
        del sender
        if (identity, step) == (self.run_id, self.step) and batch in self.offered:
            del self.offered[batch]
            self.shell.note("handed")
            self.work()

    def take_back(self) -> None:
        """An offer that no board took."""
        for batch in [b for b, at in self.offered.items() if self.now() - at > OFFER_S]:
            del self.offered[batch]
            self.todo.append(batch)

    def repeat_last(self) -> None:
        """The last sums again, of the segments that are this board's."""
        if self.running is None or not self.live or self.step - 1 not in self.last:
            return
        made_by, sums = self.last[self.step - 1]
        if made_by == self.run_id:
            before = self.makers.get(self.step - 1)
            for r, owner in enumerate(self.owners):
                if owner == self.me:
                    frame = ("sum", made_by, self.step - 1, r, sums[r], before)
                    self.cast((*self.running.members, *self.running.learners), frame)
