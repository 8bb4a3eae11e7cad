"""What named histories are made of."""

from __future__ import annotations

from typing import Any

from consensus_board import BEGINNING, NOBODY, RUN
from consensus_checks import Violation
from consensus_simulator import Simulator
from consensus_step import CHECKPOINT_STEPS, SEGMENTS

from picoedge.mesh.consensus import events as e
from picoedge.mesh.consensus import messages as m
from picoedge.mesh.consensus.configuration import (
    Ballot,
    BoardId,
    Configuration,
    Epoch,
    Role,
    Snapshot,
)
from picoedge.mesh.consensus.machine import Machine
from picoedge.mesh.consensus.record import StoredRecord


def must(true: object, *why: object) -> None:
    """Raises Violation."""
    if not true:
        raise Violation(str(why))


def kind_of(frame: Any) -> str:
    """What a frame is, also one that is relayed."""
    inner = frame[2] if frame[0] == "via" else frame
    return type(inner[2]).__name__ if inner[0] == "control" else str(inner[0])


def progress(sim: Simulator, seconds: float, why: object, steps: int = 5) -> None:
    """The run goes on by itself."""
    before = sim.best()
    sim.run(seconds)
    after = sim.best()
    must(after[0] > before[0] or after[1] >= before[1] + steps, "no progress", why, before, after)


def same_generation(sim: Simulator) -> None:
    """No final step was lost."""
    must(sim.best()[0] == BEGINNING, "a generation was lost", sim.best())


def epoch_of(sim: Simulator) -> int:
    """The number of the newest configuration."""
    newest = sim.newest()
    assert newest is not None
    return newest.epoch.number


def knows(sim: Simulator, key: str) -> set[str]:
    """Members of the configuration that a board knows."""
    known = sim.shells[key].machine.known
    return {member.key for member in known.members} if known else set()


def alone(sim: Simulator, *keys: str) -> None:
    """Only these ask to take part."""
    for key in sim.keys:
        if key not in keys:
            sim.tell(key, e.Leave())


def starts_at_checkpoint(sim: Simulator, last: int) -> None:
    """A new generation loses no more than the interval of checkpoints."""
    for configuration in sim.checks.configurations.values():
        if configuration.restores and configuration.epoch.number:
            least = last - CHECKPOINT_STEPS - 4
            must(configuration.start >= least, "steps were lost", configuration.start, last)


def failures(sim: Simulator) -> int:
    """Configurations that were not planned."""
    return sum(c.ballot.round > 0 for c in sim.checks.configurations.values())


def told(event: Any, kind: type) -> Any:
    """The message of this kind that an event brings to a machine."""
    if event[0] == "frame" and event[3][0] == "control" and isinstance(event[3][2], kind):
        return event[3][2]
    return None


class Table:
    """Voters that are asked one by one, in an order that no network is needed for."""

    def __init__(self, boards: tuple[BoardId, ...]) -> None:
        self.base = configuration(boards)
        self.instance = self.base.epoch.next
        self.machines = {board: machine(board, self.base) for board in boards}
        self.disks: dict[BoardId, tuple[int, StoredRecord]] = {}
        running = e.Report(Snapshot(BEGINNING, 1, None), self.base.identity)
        for one in self.machines.values():
            one.on(e.Reported(running))
            for _ in range(9):  # nothing moves: reason enough to answer
                one.on(e.Tick())

    def value(self, members: tuple[BoardId, ...], ballot: Ballot) -> Configuration:
        """A configuration to be proposed."""
        return configuration(members, epoch=self.instance, ballot=ballot, start=2)

    def restart(self, board: BoardId, again: BoardId) -> None:
        """The next process of a board, with what was stored."""
        stored = self.disks.get(board, (1, StoredRecord(self.base)))
        self.machines[again] = machine(again, None, stored)

    def say(
        self,
        board: BoardId,
        sender: BoardId,
        message: m.ConsensusMessage,
        to: int = 0,
        late: bool = False,
    ) -> list[m.ConsensusMessage]:
        """What a board answers when its worker and its disk have done what they were asked."""
        found = self.machines[board]
        if sender == board:  # from itself
            found.board.to_self.append(message)
            todo = found.on(e.Lost("nobody"))
        else:
            todo = found.on(e.FrameReceived(sender, to or board.incarnation, message))
        said: list[m.ConsensusMessage] = []
        while todo:
            match todo.pop(0):
                case e.Send(message=answer):
                    said.append(answer)
                case e.Freeze(epoch=epoch):
                    todo += found.on(e.Frozen(epoch, e.NO_STATE))
                case e.Fence(ballot=ballot, start=start):
                    todo += found.on(e.Fenced(ballot, None if late else start))
                case e.Store(sequence=sequence, record=record):
                    self.disks[board] = sequence, record
                    todo += found.on(e.Stored(sequence))
        return said

    def promises(self, board: BoardId, ballot: Ballot) -> bool:
        """Whether a board promises."""
        asked = m.Prepare(self.instance, ballot, self.base.members)
        self.say(board, ballot.board, asked)
        return self.machines[board].acceptor.promised == ballot

    def accepts(
        self, board: BoardId, ballot: Ballot, value: Configuration, by: tuple[BoardId, ...],
        *, to: int = 0, late: bool = False,
    ) -> bool:  # fmt: skip
        """Whether a board accepts."""
        asked = m.Accept(self.instance, ballot, value, by)
        said = self.say(board, ballot.board, asked, to, late)
        return any(isinstance(answer, m.Accepted) for answer in said)


def configuration(
    members: tuple[BoardId, ...], *, epoch: Epoch | None = None, ballot: Ballot | None = None,
    start: int = 0,
) -> Configuration:  # fmt: skip
    """A configuration of these members alone."""
    n = len(members)
    return Configuration(
        RUN, epoch or Epoch(BEGINNING, 0), ballot or Ballot(0, 0, NOBODY), members, members, (),
        start, members[0], (0,) * n, (1,) * n,
        tuple(SEGMENTS // n + (i < SEGMENTS % n) for i in range(n)),
    )  # fmt: skip


def machine(
    me: BoardId, first: Configuration | None, record: tuple[int, StoredRecord] | None = None
) -> Machine:
    """A machine that has begun."""
    found = Machine(me, Role.TRAINER, RUN, SEGMENTS, first=first, record=record)
    found.start()
    return found
