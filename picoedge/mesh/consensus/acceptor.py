"""The voter: what it promises, accepts and has stored in the instance of the next epoch.

Promises stay in memory, what is accepted is stored *before* that is said. A process that restarts
has forgotten its promises; therefore an `Accept` of round 1 or later names the processes whose
promises its configuration was chosen from, and only those accept it. Without the names, a late copy
of another proposer's `Prepare` lets the new process of a voter complete two quorums (the history
`late prepare`). In round 0, which has no promises, only processes vote that are voters themselves.
"""

from __future__ import annotations

from picoedge.mesh.consensus.board import Board
from picoedge.mesh.consensus.configuration import NOBODY, Ballot, BoardId, Epoch
from picoedge.mesh.consensus.events import Fence, Fenced, Freeze, Frozen, Report
from picoedge.mesh.consensus.messages import (
    Accept,
    Accepted,
    Prepare,
    Promise,
    Refused,
    Standing,
    Vote,
)


class Acceptor:
    """This board's votes. Reset when another configuration is known to be chosen."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.promised: Ballot | None = None
        self._storing: int | None = None  # the record that the vote's `Accepted` waits for
        self._asked: BoardId | None = None  # whose `Prepare` the worker freezes for
        self._fencing: Accept | None = None  # which waits for the worker's fence
        board.on_adopt(self._reset)

    def _reset(self) -> None:
        self.promised = self._storing = self._asked = self._fencing = None

    # Round 1 and later

    def on_prepare(self, sender: BoardId, prepare: Prepare) -> None:
        """Promise to accept nothing below the ballot, and freeze: `Frozen` sends the promise."""
        if not self._allows(prepare.ballot):
            return
        self.promised = prepare.ballot
        self._asked = sender
        self._freeze(prepare.instance)

    def _allows(self, ballot: Ballot) -> bool:
        """Whether no higher ballot was promised, nor accepted by this or an earlier process."""
        vote = self._board.vote
        return (self.promised is None or ballot > self.promised) and (
            vote is None or ballot > vote.ballot
        )

    def _freeze(self, instance: Epoch) -> None:
        board = self._board
        board.frozen = instance if board.frozen is None else max(board.frozen, instance)
        board.effects.append(Freeze(instance))

    def on_frozen(self, event: Frozen) -> None:
        """The worker stands still: say where, with what was accepted, stored or not yet."""
        board, proposer, ballot = self._board, self._asked, self.promised
        if proposer is None or ballot is None or event.epoch != board.instance:
            return
        standing = self._standing(event.report)
        checkpoint = event.report.checkpoint
        promise = Promise(event.epoch, ballot, board.role, standing, board.vote, checkpoint)
        board.send(proposer, promise)

    def _standing(self, report: Report) -> Standing | None:
        """The state, if it belongs to the configuration that is known.

        A worker that has not entered it yet has such a state only as one of its members that is not
        ahead of its start.
        """
        known, state = self._board.known, report.state
        if known is None or state is None:
            return None
        waits = self._board.is_member() and state.step <= known.start
        if report.running != known.identity and not waits:
            return None
        return Standing(state, report.holds_sum, report.finished)

    # Accepting

    def on_accept(self, sender: BoardId, accept: Accept) -> None:
        """Accept what may be accepted, or say it again."""
        vote = self._board.vote
        if vote is not None and vote == (accept.ballot, accept.configuration):
            self._say_if_stored()
        elif accept.ballot.round == 0:
            self._accept_planned(sender, accept)
        elif self._may_accept(accept):
            self._accept(accept)

    def _may_accept(self, accept: Accept) -> bool:
        return self._is_named(accept) and self.promised == accept.ballot

    def _is_named(self, accept: Accept) -> bool:
        return self._board.me in accept.promisers

    def _accept_planned(self, sender: BoardId, accept: Accept) -> None:
        """A planned change binds no board that has promised; members fence themselves first.

        A member that has sent a part of the step refuses: a check for time, not for safety.
        """
        board = self._board
        if not board.is_fresh() or not self._may_plan(accept.ballot):
            return
        if not board.is_member():
            self._accept(accept)
        elif board.runs_known() and not board.is_frozen():
            self._fencing = accept
            board.effects.append(Fence(accept.ballot, accept.configuration.start))

    def _may_plan(self, ballot: Ballot) -> bool:
        vote = self._board.vote
        return (self.promised is None or ballot >= self.promised) and (
            vote is None or ballot > vote.ballot
        )

    def on_fenced(self, event: Fenced) -> None:
        """The worker's answer: accept the planned change, or refuse this attempt for good."""
        accept, self._fencing = self._fencing, None
        if accept is None or accept.ballot != event.ballot or not self._may_plan(event.ballot):
            return
        if event.start is not None and event.start <= accept.configuration.start:
            self._accept(accept)
            return
        self.promised = Ballot(0, event.ballot.attempt + 1, NOBODY)
        self._board.send(event.ballot.board, Refused(accept.instance, event.ballot))

    def _accept(self, accept: Accept) -> None:
        """Store the vote; `Stored` says so to the others."""
        board = self._board
        self.promised = accept.ballot
        board.vote = Vote(accept.ballot, accept.configuration)
        self._storing = board.store()

    def on_stored(self) -> None:
        """A record is durable: if the vote is in it, it counts from now on."""
        if self._storing is not None and self._storing <= self._board.stored:
            self._storing = None
            self._say_if_stored()

    def _say_if_stored(self) -> None:
        board, vote = self._board, self._board.vote
        if vote is None or self._storing is not None or board.instance is None:
            return
        concerned = board.concerned | {*vote.configuration.members, *vote.configuration.voters}
        board.cast(concerned | {board.me}, Accepted(board.instance, *vote))
