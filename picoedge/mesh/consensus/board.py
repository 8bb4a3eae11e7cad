"""This board's view and its messages, which the parts of the machine share.

Nothing here decides anything but what is chosen already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from picoedge.mesh.consensus.configuration import (
    BoardId,
    Configuration,
    Epoch,
    Role,
    is_quorum,
    keys_of,
)
from picoedge.mesh.consensus.events import NO_STATE, Adopt, Effect, Report, Send, Store
from picoedge.mesh.consensus.hearing import Hearing, TickTiming
from picoedge.mesh.consensus.messages import ConsensusMessage, Vote
from picoedge.mesh.consensus.proposers.choice import View
from picoedge.mesh.consensus.record import StoredRecord


class Board:
    """One process. `known`: the newest configuration it knows to be chosen.

    `known` is not what the worker runs: that is in `report`, and comes later.
    """

    def __init__(
        self, me: BoardId, role: Role, run: str, segments: int, timing: TickTiming, uplink: int
    ) -> None:
        self.me, self.role, self.run, self.timing = me, role, run, timing
        self.segments, self.uplink = segments, uplink
        self.known: Configuration | None = None
        self.vote: Vote | None = None  # in the instance after `known`
        self.report: Report = NO_STATE
        self.frozen: Epoch | None = None
        self.hearing = Hearing(me, timing)
        self.effects: list[Effect] = []
        self.to_self: deque[ConsensusMessage] = deque()
        self.stored = 0  # the sequence number of the last durable record
        self._sequence = 0
        self._on_adopt: list[Callable[[], None]] = []

    # Speech

    def send(self, to: BoardId, message: ConsensusMessage) -> None:
        """Send to the process that has a board's key now; to this board, after this event."""
        if to.key == self.me.key:
            self.to_self.append(message)
        elif to.key not in self.hearing.revoked:
            address = self.hearing.address(to)
            self.effects.append(Send(address.key, address.incarnation, message))

    def cast(self, boards: Iterable[BoardId], message: ConsensusMessage) -> None:
        """Send to each key once, in the order of keys."""
        for board in sorted({board.key: board for board in boards}.values()):
            self.send(board, message)

    # What is chosen

    @property
    def instance(self) -> Epoch | None:
        """The epoch that the voters of `known` decide next."""
        return None if self.known is None else self.known.epoch.next

    @property
    def concerned(self) -> set[BoardId]:
        """All boards named by `known`."""
        known = self.known
        return set() if known is None else {*known.members, *known.voters, *known.learners}

    def on_adopt(self, call: Callable[[], None]) -> None:
        """Have `call` called when another configuration is known to be chosen."""
        self._on_adopt.append(call)

    def adopt(self, configuration: Configuration) -> None:
        """Learn that a configuration is chosen; an earlier one changes nothing."""
        known = self.known
        if configuration.run != self.run or (known and configuration.epoch <= known.epoch):
            return
        self.known = configuration
        self.vote = None
        self.store()
        self.effects.append(Adopt(configuration))
        for call in self._on_adopt:
            call()

    def store(self) -> int:
        """Ask for the record to be stored; returns the sequence number that `Stored` will tell."""
        assert self.known is not None
        self._sequence += 1
        self.effects.append(Store(self._sequence, StoredRecord(self.known, self.vote)))
        return self._sequence

    def restore(self, sequence: int, record: StoredRecord) -> None:
        """Begin from the record of an earlier process."""
        self._sequence = self.stored = sequence
        self.known, self.vote = record.known, record.vote

    # Seats

    def has_seat(self) -> bool:
        """Whether this board's key has a vote in the instance."""
        known = self.known
        if known is None or self.me.key in self.hearing.revoked:
            return False
        return self.me.key in keys_of(known.voters)

    def is_fresh(self) -> bool:
        """Whether this very process is the voter: it remembers whatever it promised."""
        return self.known is not None and self.me in self.known.voters

    def is_member(self) -> bool:
        """Whether this very process is a member of `known`."""
        return self.known is not None and self.me in self.known.members

    def runs_known(self) -> bool:
        """Whether the worker makes the sums of `known`, as last heard of it."""
        return self.known is not None and self.report.running == self.known.identity

    def is_frozen(self) -> bool:
        """Whether a promise was given for a configuration that is not known yet."""
        known = self.known
        return known is not None and self.frozen is not None and self.frozen > known.epoch

    def decides(self, keys: Iterable[str]) -> bool:
        """Whether boards with these keys are a quorum of the instance."""
        return self.known is not None and is_quorum(self.known.voters, set(keys))

    def electorate(self, members: tuple[BoardId, ...]) -> tuple[BoardId, ...]:
        """Voters beside these members: a witness if that makes their number odd.

        The present witness is kept while it is heard; else the one that is up longest.
        """
        if len(members) % 2:
            return members
        keys, known = keys_of(members), self.known
        kept = [
            voter for voter in (known.voters if known else ())
            if known and voter not in known.members and not self.hearing.is_gone(voter)
        ]  # fmt: skip
        idle = kept + self.hearing.witnesses()
        if self.role is Role.WITNESS:
            idle.append(self.me)
        return members + tuple(board for board in idle if board.key not in keys)[:1]

    def is_witness(self, key: str) -> bool:
        """Whether the board of a key offers only to vote."""
        return self.hearing.is_witness(key) if key != self.me.key else self.role is Role.WITNESS

    def uplink_of(self, board: BoardId) -> int:
        """The uplink that a board tells of, 0 if it is not known."""
        if board.key == self.me.key:
            return self.uplink
        peer = self.hearing.peers.get(board.key)
        return peer.beat.uplink if peer and peer.beat else 0

    def view(self) -> View:
        """The facts a new configuration is made from, beside the answers of others."""
        assert self.known is not None
        return View(
            self.known, self.electorate, self.uplink_of, self.hearing.is_gone, self.segments
        )  # fmt: skip
