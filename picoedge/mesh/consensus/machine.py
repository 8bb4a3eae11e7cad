"""The state machine of membership: one event in, effects out; no clock, socket, file or chance.

    machine = Machine(me, Role.TRAINER, run, segments=128, record=found)
    for effect in machine.start() + machine.on(Tick()): ...

Boards agree on a chain of configurations (`configuration.py`): planned changes by the lowest rank
(`planned.py`), failures by any voter (`recovery.py`, `choice.py`), with the votes of
`acceptor.py`; what a worker then does is in `duty.py`. Boards of the cluster are trusted to follow
the protocol, as in Paxos and Raft: they may crash, restart, lose and delay frames, and be heard by
some only. Frames of boards without a vote, of past processes, of earlier epochs and of revoked keys
change nothing.

A worker that dies is a new process of its board: the service makes a new machine, with a larger
incarnation, from the record.
"""

from __future__ import annotations

from picoedge.mesh.consensus import events as e
from picoedge.mesh.consensus import messages as m
from picoedge.mesh.consensus.acceptor import Acceptor
from picoedge.mesh.consensus.board import Board
from picoedge.mesh.consensus.configuration import (
    MAX_MEMBERS,
    NOBODY,
    BoardId,
    Configuration,
    Epoch,
    Role,
    RunGeneration,
    keys_of,
)
from picoedge.mesh.consensus.hearing import TickTiming
from picoedge.mesh.consensus.proposers.planned import Planner, wishes
from picoedge.mesh.consensus.proposers.recovery import MembershipRecovery
from picoedge.mesh.consensus.proposers.resume import Resumption
from picoedge.mesh.consensus.record import StoredRecord

DEFAULT_TIMING = TickTiming()


class Machine:
    """One process of a board, in one run.

    `me`: its incarnation is larger than that of any earlier process of the key. `run`: the hash of
    the run's settings; configurations of other runs are ignored. `segments`: of the gradient, for
    dealing ranges. `record`: what an earlier process has stored, with its sequence number. `first`:
    the first configuration, for the boards that begin a run together.
    """

    def __init__(
        self, me: BoardId, role: Role, run: str, segments: int, *,
        record: tuple[int, StoredRecord] | None = None, first: Configuration | None = None,
        timing: TickTiming = DEFAULT_TIMING, uplink: int = 0, joins: bool = True,
    ) -> None:  # fmt: skip
        self.board = Board(me, role, run, segments, timing, uplink)
        self.acceptor = Acceptor(self.board)
        self.planner = Planner(self.board, self.acceptor)
        self.recovery = MembershipRecovery(self.board, self.acceptor)
        self.resumption = Resumption(self.board, lambda: self.recovery.stuck)
        self._joins, self._leaves, self._leaves_one = joins, False, False
        self._accepted: dict[str, m.Accepted] = {}  # the last of each voter
        self._told: set[str] = set()  # keys that were told of `known` or asked since the last tick
        self.board.on_adopt(self._accepted.clear)
        if record is not None:
            self.board.restore(*record)
        self._first = first

    @property
    def known(self) -> Configuration | None:
        """The newest configuration known to be chosen."""
        return self.board.known

    def start(self) -> list[e.Effect]:
        """The effects of a process's beginning."""
        self.board.effects = []
        if self.board.known is not None:
            self.board.effects.append(e.Adopt(self.board.known))
        if self._first is not None:
            self.board.adopt(self._first)
        return self.board.effects

    def on(self, event: e.MachineEvent) -> list[e.Effect]:
        """Take an event; returns what is to be done, in this order."""
        board = self.board
        board.effects = []
        self._take(event)
        while board.to_self:
            self._hear(board.me, board.to_self.popleft())
        return board.effects

    def _take(self, event: e.MachineEvent) -> None:
        match event:
            case e.FrameReceived():
                self._receive(event)
            case e.Tick():
                self._tick()
            case e.Reported():
                self.board.report = event.report
                self.planner.propose()
            case e.Frozen():
                self.board.report = event.report
                self.acceptor.on_frozen(event)
                self.resumption.on_frozen(event)
            case e.Fenced():
                self.planner.on_fenced(event)
                self.acceptor.on_fenced(event)
            case e.Stored():
                self.board.stored = max(self.board.stored, event.sequence)
                self.acceptor.on_stored()
            case e.Proven():
                self.planner.on_proven(event.board)
            case _:
                self._command(event)

    def _command(self, event: e.MachineEvent) -> None:
        match event:
            case e.Lost():
                self.board.hearing.lost(event.key)
                self.recovery.look()
            case e.Revoked():
                self.board.hearing.revoked.add(event.key)
                self.recovery.look()
            case e.Weighted():
                self.planner.weights = dict(event.weights)
                self.planner.propose()
            case e.Join():
                self._joins, self._leaves = True, False
            case e.Leave():
                self._joins, self._leaves, self._leaves_one = False, True, event.leaves_one
                self._wish()
            case e.Resume():
                if not self.resumption.begin():
                    self.board.effects.append(e.Declined("the run goes on"))
            case _:
                raise TypeError(f"no event: {type(event).__name__}")

    def _tick(self) -> None:
        self._told.clear()
        self.board.hearing.tick()
        self.board.effects.append(e.Broadcast(self._beat()))
        self.recovery.tick()
        self.planner.tick()
        self.resumption.tick()
        self._wish()

    def _wish(self) -> None:
        """Ask the members to learn or to leave, until it is so."""
        board, known = self.board, self.board.known
        if known is None or board.me.key in board.hearing.revoked:
            return
        if self._leaves:
            if board.me in known.members or board.me in known.learners:
                board.cast(known.members, m.Request(leave=True, leaves_one=self._leaves_one))
        elif wishes(board.role, board.me, known, join=self._joins):
            board.cast(known.members, m.Request())

    # Frames

    def _beat(self) -> m.Beat:
        board, known = self.board, self.board.known
        hears = board.hearing.heard_directly() & keys_of(board.concerned)
        return m.Beat(
            known=known.identity if known else None,
            role=board.role,
            age=board.hearing.ticks,
            uplink=board.uplink,
            progress=board.report.progress,
            hears=tuple(sorted(hears)[:MAX_MEMBERS]),
        )

    def _receive(self, event: e.FrameReceived) -> None:
        """Drop what is for an earlier process: its promises and questions are not this one's."""
        sender, me = event.sender, self.board.me
        if sender.key == me.key or not self.board.hearing.heard(sender, event.relayed):
            return
        if event.to == me.incarnation or (event.to == 0 and _is_for_any(event.message)):
            self._hear(sender, event.message)

    def _hear(self, sender: BoardId, message: m.ConsensusMessage) -> None:
        match message:
            case m.Beat():
                self._hear_beat(sender, message)
            case m.Configured():
                self.board.adopt(message.configuration)
            case m.Request():
                self.planner.on_request(sender, message)
            case m.Unheard():
                self.recovery.on_unheard(sender, message)
            case m.Survey():
                self.resumption.on_survey(sender, message)
            case m.Surveyed():
                self.resumption.on_surveyed(sender, message)
            case _ if self._is_current(sender, message.instance):
                self._vote(sender, message)

    def _vote(self, sender: BoardId, message: m.ConsensusMessage) -> None:
        """Messages of the present instance. Those that count as votes count only from voters."""
        voter = self.board.known is not None and sender.key in keys_of(self.board.known.voters)
        match message:
            case m.Suspect():
                self.recovery.on_suspect(sender, message)
            case _ if not voter:
                return
            case m.Agree():
                self.recovery.on_agree(sender, message)
            case m.Prepare():
                own = sender == message.ballot.board
                if own and self.recovery.may_answer(sender, message):
                    self.acceptor.on_prepare(sender, message)
            case m.Promise():
                self.recovery.on_promise(sender, message)
            case m.Accept():
                self.recovery.seen(message.ballot)
                own = sender == message.ballot.board
                if own and self.board.has_seat() and self._fits(message.configuration):
                    self.acceptor.on_accept(sender, message)
            case m.Refused():
                self.planner.on_refused(sender, message)
            case m.Accepted():
                if self._fits(message.configuration):
                    self._count(sender, message)

    def _fits(self, configuration: Configuration) -> bool:
        """Whether it can follow `known`: in its generation, or as the next one's beginning."""
        instance, epoch = self.board.instance, configuration.epoch
        if instance is None or configuration.run != self.board.run:
            return False
        begins = Epoch(RunGeneration(instance.generation.number + 1, NOBODY), instance.number)
        return epoch == instance or (configuration.restores is not None and epoch == begins)

    def _count(self, sender: BoardId, accepted: m.Accepted) -> None:
        """A configuration accepted by a quorum in one ballot is chosen."""
        last = self._accepted.get(sender.key)
        if last is None or last.ballot <= accepted.ballot:
            self._accepted[sender.key] = accepted
        if self.board.decides(key for key, one in self._accepted.items() if one == accepted):
            self.board.adopt(accepted.configuration)

    def _hear_beat(self, sender: BoardId, beat: m.Beat) -> None:
        peer = self.board.hearing.peers.get(sender.key)
        if peer is not None:
            peer.beat = beat
        theirs = beat.known.epoch if beat.known else None
        mine = self.board.known.epoch if self.board.known else None
        if theirs != mine:
            self._compare(sender, theirs)

    def _is_current(self, sender: BoardId, instance: Epoch) -> bool:
        """Whether a message is of the present instance; tell or ask its sender otherwise."""
        if instance == self.board.instance:
            return True
        self._compare(sender, None if self.board.instance is None else instance)
        return False

    def _compare(self, sender: BoardId, theirs: Epoch | None) -> None:
        """A board that is behind is told of the newest configuration; one ahead is asked for it."""
        board, known = self.board, self.board.known
        if sender.key in self._told:
            return
        self._told.add(sender.key)
        if known is not None and (theirs is None or theirs <= known.epoch):
            board.send(sender, m.Configured(known))
        else:
            board.send(sender, self._beat())


def _is_for_any(message: m.ConsensusMessage) -> bool:
    return isinstance(message, (m.Beat, m.Configured, m.Survey))
