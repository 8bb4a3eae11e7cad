"""Failures: suspicion, relays, pre-votes, and the proposer of rounds 1 and later.

A board that suspects first asks; nothing stops for a question, so that a board with a bad link
cannot disturb the others again and again (the disruptive server of Ongaro's thesis, 4.2.3; its
pre-vote, 9.6). Without pre-votes a board that hears no other makes all freeze whenever it suspects.
A board that hears the suspected one relays for it from then on: a relay changes no bit of a sum, so
nothing need be agreed for it.
"""

from __future__ import annotations

from picoedge.mesh.consensus.acceptor import Acceptor
from picoedge.mesh.consensus.board import Board
from picoedge.mesh.consensus.configuration import Ballot, BoardId
from picoedge.mesh.consensus.events import SendByRelay
from picoedge.mesh.consensus.messages import Accept, Agree, Prepare, Promise, Suspect, Unheard
from picoedge.mesh.consensus.proposers import choice
from picoedge.mesh.consensus.proposers.choice import VoterAnswer

PREPARES = 8  # of one board that are answered at once, and one more in each REFILL ticks
REFILL = 2


class MembershipRecovery:
    """This board's answer to failures of others: suspicion, relays, pre-votes, rounds."""

    def __init__(self, board: Board, acceptor: Acceptor) -> None:
        self._board, self._acceptor = board, acceptor
        self.stuck = 0  # ticks without progress of any member
        self._progress: object = None
        self._agreed: dict[str, int] = {}  # pre-votes: key to tick
        self._agreed_since: int | None = None  # the tick since which they are a quorum
        self._relays: dict[str, int] = {}  # boards that are sent to by a relay, until which tick
        self._spent: dict[str, int] = {}  # `Prepare`s of each key that were answered lately
        self._round = 0
        self._rest = 0  # ticks until the next own ballot
        self._ballot: Ballot | None = None  # whose promises are collected, and since when
        self._since = 0
        self._answers: dict[str, VoterAnswer] = {}
        self._offer: Accept | None = None
        board.on_adopt(self._reset)

    def _reset(self) -> None:
        self.stuck = self._rest = 0
        self._agreed, self._answers = {}, {}
        self._ballot = self._offer = self._agreed_since = None

    def tick(self) -> None:
        """Look for progress, ask for relays and pre-votes, and repeat what has no answer yet."""
        self._count()
        self._end_relays()
        self.look()
        self._insist()

    # Suspicion

    def _count(self) -> None:
        now = self._progress_of_members()
        self.stuck = self.stuck + 1 if now == self._progress else 0
        self._progress = now
        self._rest -= 1
        if self._board.hearing.ticks % REFILL == 0:
            self._spent = {key: n - 1 for key, n in self._spent.items() if n > 1}

    def _progress_of_members(self) -> object:
        """A value that changes when any member finishes anything; a witness looks at it too."""
        board, peers = self._board, self._board.hearing.peers
        if board.known is None:
            return None
        beats = [peers[m.key].beat for m in board.known.members if m.key in peers]
        told = tuple(beat.progress for beat in beats if beat is not None)
        own = board.report.progress if board.is_member() else 0
        return board.known.identity, told, own

    def suspects(self) -> tuple[BoardId, ...]:
        """Members and voters that are gone: silent also by relays, restarted or revoked."""
        known, hearing = self._board.known, self._board.hearing
        if known is None:
            return ()
        return tuple(b for b in dict.fromkeys(known.members + known.voters) if hearing.is_gone(b))

    def look(self) -> None:
        """Ask the voters about boards that are not heard.

        A witness that is gone is exchanged by a planned change; only a member's loss, or that
        nothing moves, is a failure.
        """
        board, known = self._board, self._board.known
        if known is None or board.instance is None:
            return
        if board.me not in board.concerned and not board.has_seat():
            return
        suspects = self.suspects()
        failed = any(b in known.members for b in suspects) or self.stuck >= board.timing.stuck
        failed = failed and board.has_seat()
        unheard = suspects or tuple(b for b in known.members if not board.hearing.hears(b))
        if unheard or failed:
            board.cast(known.voters, Suspect(board.instance, unheard, failed))

    def shares(self, boards: tuple[BoardId, ...]) -> bool:
        """Whether this board suspects a member among them too, or has its own reasons for a change.

        Those are that nothing moves, that it is frozen by a promise, or that it has restarted.
        """
        board, known = self._board, self._board.known
        if known is None or any(b in known.members and board.hearing.is_gone(b) for b in boards):
            return known is not None
        stuck = self.stuck >= board.timing.stuck - 2  # others count from other moments
        return stuck or board.is_frozen() or not board.is_fresh()

    def on_suspect(self, sender: BoardId, suspect: Suspect) -> None:
        """Relay for those that are heard here; agree, if that is so."""
        board = self._board
        for suspected in suspect.boards:
            if suspected != board.me and self.relays_for(suspected):
                board.send(suspected, Unheard(sender.key))
        if suspect.failed and self.shares(suspect.boards):
            board.send(sender, Agree(suspect.instance))

    def relays_for(self, suspected: BoardId) -> bool:
        """Whether to tell a board that another does not hear it, and so relay for it."""
        return self._board.hearing.hears(suspected)

    def on_unheard(self, sender: BoardId, unheard: Unheard) -> None:
        """Send by the board that hears both, as long as the other complains."""
        board = self._board
        if unheard.by in (board.me.key, sender.key):
            return
        if unheard.by not in self._relays:
            board.effects.append(SendByRelay(unheard.by, sender.key))
        self._relays[unheard.by] = board.hearing.ticks + board.timing.relay

    def _end_relays(self) -> None:
        now = self._board.hearing.ticks
        for key in [key for key, until in self._relays.items() if until < now]:
            del self._relays[key]
            self._board.effects.append(SendByRelay(key, None))

    # The proposer

    def on_agree(self, sender: BoardId, agree: Agree) -> None:
        """Begin a ballot when a quorum thinks so too."""
        del agree
        board, now = self._board, self._board.hearing.ticks
        self._agreed[sender.key] = now
        fresh = {key for key, at in self._agreed.items() if now - at <= board.timing.agreed}
        if not board.decides(fresh):
            self._agreed_since = None
        elif board.has_seat() and self._is_turn():
            self._begin()

    def _is_turn(self) -> bool:
        """Whether to propose: the lowest rank that is here at once, each other a tick later.

        Two that propose at once cost each other a round; it is a matter of time alone.
        """
        board, known = self._board, self._board.known
        assert known is not None
        if self._agreed_since is None:
            self._agreed_since = board.hearing.ticks
        lower = known.voters[: self._rank()]
        here = sum(not board.hearing.is_gone(board.hearing.address(voter)) for voter in lower)
        return board.hearing.ticks - self._agreed_since >= here

    def _rank(self) -> int:
        known = self._board.known
        assert known is not None
        return [voter.key for voter in known.voters].index(self._board.me.key)

    def _begin(self) -> None:
        """Send `Prepare`, unless the last ballot is too recent; higher ranks rest longer."""
        board, known = self._board, self._board.known
        if self._rest > 0 or known is None or board.instance is None:
            return
        self._rest = board.timing.back_off * (1 + self._rank())
        self._round += 1
        self._ballot = Ballot(self._round, 0, board.me)
        self._since, self._answers, self._offer = board.hearing.ticks, {}, None
        board.cast(known.voters, Prepare(board.instance, self._ballot, self.suspects()))

    def may_answer(self, sender: BoardId, prepare: Prepare) -> bool:
        """Whether a `Prepare` is answered: only where its reason is shared, and not without end."""
        self.seen(prepare.ballot)
        if not self._board.has_seat() or self._spent.get(sender.key, 0) >= PREPARES:
            return False
        if sender != self._board.me and not self.shares(prepare.suspects):
            return False
        self._spent[sender.key] = self._spent.get(sender.key, 0) + 1
        return True

    def seen(self, ballot: Ballot) -> None:
        """Own ballots are higher than any that was seen."""
        self._round = max(self._round, ballot.round)

    def on_promise(self, sender: BoardId, promise: Promise) -> None:
        """Count a promise; propose when all have answered that are not gone."""
        if promise.ballot == self._ballot:
            answer = VoterAnswer(
                sender, promise.role, promise.standing, promise.vote, promise.checkpoint
            )  # fmt: skip
            self._answers[sender.key] = answer
            if self._all_answered():
                self._propose()

    def _all_answered(self) -> bool:
        known, is_gone = self._board.known, self._board.hearing.is_gone
        assert known is not None
        return all(
            voter.key in self._answers or is_gone(self._board.hearing.address(voter))
            for voter in known.voters
        )

    def _propose(self) -> None:
        """Choose from the promises of a quorum, and ask exactly those processes to accept."""
        board, ballot = self._board, self._ballot
        if ballot is None or board.instance is None or not board.decides(self._answers):
            return
        configuration = choice.successor(board.view(), ballot, list(self._answers.values()))
        self._ballot = None
        if configuration is None:
            return
        promisers = tuple(answer.board for answer in self._answers.values())
        self._offer = Accept(board.instance, ballot, configuration, promisers)
        self._insist()

    def _insist(self) -> None:
        """Tally after a short wait for the silent; ask again while no higher ballot is seen."""
        board, offer = self._board, self._offer
        waited = board.hearing.ticks - self._since
        if self._ballot is not None and waited >= board.timing.tally:
            self._propose()
        elif offer is not None and self._acceptor.promised == offer.ballot:
            board.cast(offer.promisers, offer)
