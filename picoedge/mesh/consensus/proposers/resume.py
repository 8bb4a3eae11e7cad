"""The owner's command: a run goes on without boards that a quorum would need.

It is no agreement but a decision of the owner, told what may be lost: a *generation* of the run
ends. The board that is told asks all that are there where they stand, and makes the configuration
that begins the next one from the highest state or checkpoint among them.

A later generation wins wherever it is heard of. If boards that were left out had gone on by
themselves, cut off from here, the steps they made meanwhile are given up: the owner must know that
they are gone. To refuse the command while the run moves here is all that a board can do.
"""

from __future__ import annotations

from collections.abc import Callable

from picoedge.mesh.consensus.board import Board
from picoedge.mesh.consensus.configuration import (
    Ballot,
    BoardId,
    Configuration,
    Epoch,
    RunGeneration,
)
from picoedge.mesh.consensus.events import Broadcast, Freeze, Frozen
from picoedge.mesh.consensus.messages import Configured, Survey, Surveyed
from picoedge.mesh.consensus.proposers import choice

ANSWER_TICKS = 8  # at most, for the answers of all boards that are heard
THAW_TICKS = 12  # a survey whose command died stops no board for longer


class Resumption:
    """Surveys: the owner's own, and those that this board answers."""

    def __init__(self, board: Board, stuck: Callable[[], int]) -> None:
        self._board, self._stuck = board, stuck
        self._generation: RunGeneration | None = None  # of the own survey, and its answers
        self._answers: dict[BoardId, Surveyed] = {}
        self._since = 0
        self._asked: tuple[BoardId, Epoch, int] | None = None  # by whom, where frozen, since when
        board.on_adopt(self._reset)

    def _reset(self) -> None:
        self._generation = None

    def begin(self) -> bool:
        """Ask all boards. False: the run goes on, and nothing is to be resumed."""
        board, known = self._board, self._board.known
        if known is None or self._stuck() < board.timing.stuck:
            return False
        self._generation = RunGeneration(known.epoch.generation.number + 1, board.me)
        self._answers, self._since = {}, board.hearing.ticks
        board.effects.append(Broadcast(Survey(self._generation)))
        board.to_self.append(Survey(self._generation))
        return True

    def tick(self) -> None:
        """Make the configuration when the answers are in; thaw where none came."""
        board, now = self._board, self._board.hearing.ticks
        if self._generation is not None:
            self._collect(self._generation)
        if self._asked is not None and now - self._asked[2] >= THAW_TICKS:
            epoch, self._asked = self._asked[1], None
            known = board.known
            if known is not None and known.epoch < epoch:
                board.effects.append(Freeze(board.frozen or known.epoch))

    # Answering

    def on_survey(self, sender: BoardId, survey: Survey) -> None:
        """Stand still: `Frozen` answers."""
        board, epoch = self._board, Epoch(survey.generation, 0)
        if board.known is None or board.known.epoch < epoch:
            self._asked = sender, epoch, board.hearing.ticks
            board.effects.append(Freeze(epoch))

    def on_frozen(self, event: Frozen) -> None:
        """Tell where this board stands."""
        board, asked = self._board, self._asked
        if asked is None or asked[1] != event.epoch:
            return
        report = event.report
        found = [snapshot for snapshot in (report.state, report.checkpoint) if snapshot is not None]
        latest = max(found, key=choice.order_of) if found else None
        if board.is_witness(board.me.key):
            latest = None
        board.send(asked[0], Surveyed(event.epoch.generation, board.known, latest))

    # Making

    def _collect(self, generation: RunGeneration) -> None:
        """Ask again until all boards that are heard have answered: any state may be the newest."""
        board = self._board
        missing = board.hearing.heard_directly() - {b.key for b in self._answers}
        if not missing or board.hearing.ticks - self._since >= ANSWER_TICKS:
            self._make(generation)
        else:
            board.effects.append(Broadcast(Survey(generation)))

    def on_surveyed(self, sender: BoardId, answer: Surveyed) -> None:
        """Count an answer; one of a later process takes the place of an earlier one's."""
        if answer.generation == self._generation:
            others = {b: a for b, a in self._answers.items() if b.key != sender.key}
            self._answers = {**others, sender: answer}

    def _make(self, generation: RunGeneration) -> None:
        """Learn the newest configuration first: the next generation is above all that are known."""
        self._generation = None
        board, answers = self._board, self._answers
        newest = max((a.known for a in answers.values() if a.known), key=_epoch_of, default=None)
        if newest is not None:
            board.adopt(newest)
        known = board.known
        latest = {board_: a.latest for board_, a in answers.items() if a.latest is not None}
        if known is None or not latest:
            return
        number = max(generation.number, known.epoch.generation.number + 1)
        configuration = choice.resumed(
            board.view(), RunGeneration(number, board.me), Ballot(1, 0, board.me), latest,
            [b for b in answers if not board.is_witness(b.key)],
        )  # fmt: skip
        board.adopt(configuration)
        board.effects.append(Broadcast(Configured(configuration)))


def _epoch_of(configuration: Configuration) -> Epoch:
    return configuration.epoch
