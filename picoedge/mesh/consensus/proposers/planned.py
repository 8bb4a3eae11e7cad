"""Planned changes: boards counted in, learners, leaves, a witness exchanged, weights, routes.

The lowest-ranked member proposes them in round 0, without promises: one process makes all ballots
of the round, and a next one only when the last cannot be chosen any more. Nobody stops for it. The
proposer *fences itself* at the step after its own before it asks: as a step needs all members, its
fence holds all, and no step from the start on can be completed under the old configuration.

Without its own fence members complete that step in both, and two histories begin.
"""

from __future__ import annotations

from picoedge.mesh.consensus import topology
from picoedge.mesh.consensus.acceptor import Acceptor
from picoedge.mesh.consensus.board import Board
from picoedge.mesh.consensus.configuration import (
    MAX_MEMBERS,
    Ballot,
    BoardId,
    Configuration,
    Role,
    Route,
    is_quorum,
    keys_of,
)
from picoedge.mesh.consensus.events import Fence, Fenced
from picoedge.mesh.consensus.messages import Accept, Refused, Request

PROOF_TICKS = 8  # for which a learner's state counts as proven
FEWEST_COPIES = 2  # of the state that boards leave behind by choice
_Wanted = tuple[tuple[BoardId, ...], tuple[BoardId, ...], tuple[BoardId, ...], tuple[int, ...]]


class Planner:
    """The proposer of round 0, at work where this board is the lowest-ranked member."""

    def __init__(self, board: Board, acceptor: Acceptor) -> None:
        self._board, self._acceptor = board, acceptor
        self.proven: dict[BoardId, int] = {}  # and the tick of the last proof
        self.learners: set[BoardId] = set()
        self.leaving: set[BoardId] = set()
        self._leaves_one: set[BoardId] = set()
        self.weights: dict[str, int] = {}
        self.plan: Configuration | None = None
        self._attempt = 0
        self._fencing: Ballot | None = None
        self._refused: set[str] = set()
        self._routes: tuple[tuple[Route, ...], int] = ((), 0)  # seen, and for how many ticks
        board.on_adopt(self._reset)

    def _reset(self) -> None:
        self.plan = self._fencing = None
        self._refused = set()
        known = self._board.known
        assert known is not None
        self.proven = {b: at for b, at in self.proven.items() if b not in known.members}
        self.learners -= {*known.members, *known.learners}
        self.leaving &= {*known.members, *known.learners}
        self._leaves_one &= self.leaving

    # Wishes

    def on_request(self, sender: BoardId, request: Request) -> None:
        """A board wants to learn, or to leave."""
        known = self._board.known
        if known is None:
            return
        if request.leave:
            self.learners.discard(sender)
            self.proven.pop(sender, None)
            self.leaving |= {sender} & {*known.members, *known.learners}
            self._leaves_one |= {sender} if request.leaves_one else set()
        elif sender not in known.members and sender not in known.learners:
            self.learners.add(sender)
        self.propose()

    def on_proven(self, board: BoardId) -> None:
        """A learner's state is that of this run."""
        if self._board.known is not None and board not in self._board.known.members:
            self.proven[board] = self._board.hearing.ticks
            self.propose()

    # Proposing

    def tick(self) -> None:
        """Look at what is wanted, and ask the voters again."""
        self._forget()
        self._look_at_routes()
        self.propose()
        if self.plan is not None:
            self._ask(self.plan)

    def _forget(self) -> None:
        """Boards that are gone ask for nothing, and a proof is for its moment: it is repeated."""
        hearing = self._board.hearing
        since = hearing.ticks - PROOF_TICKS
        self.proven = {b: at for b, at in self.proven.items() if at >= since}
        self.learners = {b for b in self.learners if not hearing.is_gone(b)}

    def propose(self) -> None:
        """Begin with what is wanted, if this board may now."""
        if not self._may_propose() or not self._differs(self._wanted()):
            return
        self._attempt += 1
        self._fence_at(None)

    def _may_propose(self) -> bool:
        """Whether it is the lowest rank, `known` runs, and its first step is complete."""
        board, known = self._board, self._board.known
        if known is None or known.members[0] != board.me or board.is_frozen():
            return False
        state, free = board.report.state, self.plan is None and self._fencing is None
        settled = board.runs_known() and state is not None and state.step > known.start
        return free and settled and self._acceptor.promised is None and board.has_seat()

    def _fence_at(self, start: int | None) -> None:
        self._fencing = Ballot(0, self._attempt, self._board.me)
        self._board.effects.append(Fence(self._fencing, start))

    def on_fenced(self, event: Fenced) -> None:
        """The own worker has stopped short of `start`: now the others may be asked."""
        if event.ballot != self._fencing:
            return
        self._fencing = None
        if event.start is None:
            return
        wanted, promised = self._wanted(), self._acceptor.promised
        withdrawn = promised is not None and promised.round > 0
        if withdrawn or not self._board.runs_known() or not wanted[0]:
            return
        self.plan = self._configuration(event.ballot, event.start, wanted)
        self._refused = set()
        self._ask(self.plan)

    def _ask(self, plan: Configuration) -> None:
        board = self._board
        assert board.known is not None
        if board.instance is not None:
            board.cast(board.known.voters, Accept(board.instance, plan.ballot, plan))

    def on_refused(self, sender: BoardId, refused: Refused) -> None:
        """Make the next attempt once so many refuse that the others are no quorum."""
        known = self._board.known
        if self.plan is None or known is None or refused.ballot != self.plan.ballot:
            return
        self._refused.add(sender.key)
        if not is_quorum(known.voters, keys_of(known.voters) - self._refused):
            self.plan = None
            self._attempt += 1
            self._fence_at(None)

    # What is wanted

    def _wanted(self) -> _Wanted:
        board, known = self._board, self._board.known
        assert known is not None
        hearing = board.hearing
        # A key that is a voter as an earlier process is counted in after a failure removed that.
        taken = keys_of(known.voters)
        joins = sorted(b for b in self.proven if b.key not in taken and not hearing.is_gone(b))
        joins = joins[: MAX_MEMBERS - 1 - len(known.members)]  # one place is a witness's
        leaving = sorted(self.leaving & {*known.members}, key=lambda b: (b in self._leaves_one, b))
        while leaving and len(known.members) - len(leaving) + len(joins) < self._fewest(leaving):
            leaving.pop(0)
        members = tuple(b for b in known.members if b not in leaving) + tuple(joins)
        asking = [*known.learners, *sorted(self.learners - {*known.learners})]
        learners = [
            b for b in asking
            if b not in members and b not in self.leaving and not hearing.is_gone(b)
            and (len(members) == 1 or not board.is_witness(b.key))
        ]  # fmt: skip
        weights = tuple(self._weight(b) for b in members)
        return members, board.electorate(members), tuple(learners[:MAX_MEMBERS]), weights

    def _fewest(self, leaving: list[BoardId]) -> int:
        """The fewest copies of the state that these may leave behind."""
        return 1 if self._leaves_one.issuperset(leaving) else FEWEST_COPIES

    def _weight(self, board: BoardId) -> int:
        known = self._board.known
        assert known is not None
        if board.key in self.weights:
            return self.weights[board.key]
        return known.weights[known.members.index(board)] if board in known.members else 1

    def _differs(self, wanted: _Wanted) -> bool:
        known = self._board.known
        assert known is not None
        members, voters, learners, weights = wanted
        changed = members != known.members or set(voters) != set(known.voters)
        changed |= set(learners) != set(known.learners) or weights != known.weights
        return bool(members) and (changed or self._wants_routes())

    def _configuration(self, ballot: Ballot, start: int, wanted: _Wanted) -> Configuration:
        board, known = self._board, self._board.known
        assert known is not None
        members, voters, learners, weights = wanted
        uplinks = [board.uplink_of(member) for member in members]
        return Configuration(
            run=known.run,
            epoch=known.epoch.next,
            ballot=ballot,
            members=members,
            voters=voters,
            learners=learners,
            start=start,
            source=board.me if board.me in members else members[0],
            holdings=(0,) * len(members),
            weights=weights,
            shares=topology.shares(uplinks, board.segments),
            routes=topology.routes([m.key for m in members], self._hears(), uplinks),
        )

    # Routes

    def _hears(self) -> dict[str, frozenset[str]]:
        """The keys that each board hears directly, by its own account."""
        hearing = self._board.hearing
        told = {
            key: frozenset(peer.beat.hears) for key, peer in hearing.peers.items()
            if peer.beat and hearing.present(key)
        }  # fmt: skip
        return {**told, self._board.me.key: hearing.heard_directly()}

    def _look_at_routes(self) -> None:
        known = self._board.known
        if known is None or known.members[0] != self._board.me:
            return
        uplinks = [self._board.uplink_of(member) for member in known.members]
        keys = [member.key for member in known.members]
        all_here = all(self._board.hearing.present(key) for key in keys)
        seen = topology.routes(keys, self._hears(), uplinks) if all_here else known.routes
        before, ticks = self._routes
        self._routes = (seen, ticks + 1 if seen == before else 0)

    def _wants_routes(self) -> bool:
        known = self._board.known
        seen, ticks = self._routes
        return known is not None and seen != known.routes and ticks >= self._board.timing.route


def wishes(role: Role, me: BoardId, configuration: Configuration, *, join: bool) -> bool:
    """Whether a board that is not a member should ask to learn.

    A witness does while one trainer is left, as the second copy of its state; it is never counted
    in.
    """
    if me in configuration.members or me in configuration.learners:
        return False
    return join if role is Role.TRAINER else len(configuration.members) == 1
