"""Each rule of the machine taken away, one at a time: the simulator must find what goes wrong.

python consensus_mutants.py [SEEDS [MUTANT ...]]    which histories catch which mutant
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import consensus_seeds
from consensus_board import Disk
from consensus_checks import Checks
from consensus_histories import HISTORIES
from consensus_worker import Worker

from picoedge.mesh.consensus import board, duty, topology
from picoedge.mesh.consensus.acceptor import Acceptor
from picoedge.mesh.consensus.machine import Machine
from picoedge.mesh.consensus.messages import Vote
from picoedge.mesh.consensus.proposers import choice, planned
from picoedge.mesh.consensus.proposers.recovery import MembershipRecovery

Patch = tuple[Any, str, Any]


def any_quorum(voters: Any, keys: Any) -> bool:
    return any(voter.key in keys for voter in voters)


def any_half(voters: Any, keys: Any) -> bool:
    return 2 * sum(voter.key in keys for voter in voters) >= len(voters)


def one_step_short(known: Any, me: Any, place: Any, asked: Any) -> bool:
    state = place.state
    return me in known.members and state is not None and state.step == known.start - 1


def first_record(self: Any) -> Any:
    return min(self.first.items()) if self.first else None


def finish_first(self: Any, sequence: int, record: Any) -> None:
    self.__dict__.setdefault("first", {sequence: record})


def accept_at_once(self: Any, accept: Any) -> None:
    self.promised = accept.ballot
    self._board.vote = Vote(accept.ballot, accept.configuration)
    self._board.store()
    self._say_if_stored()


real_fence = Worker.set_fence


def no_own_fence(self: Any, start: int | None) -> int | None:
    fenced = real_fence(self, start)
    if self.known and self.known.members[0] == self.me:
        self.fence = None
    return fenced


real_look = MembershipRecovery.look


def propose_at_once(self: Any) -> None:
    real_look(self)
    stuck = self.stuck >= self._board.timing.stuck
    if self._board.has_seat() and (self.suspects() or stuck):
        self._begin()


def seated(self: Any, sender: Any, prepare: Any) -> bool:
    self.seen(prepare.ballot)
    return bool(self._board.has_seat())


real_made = choice._made


def with_witnesses(view: Any, ballot: Any, members: Any, *rest: Any, **more: Any) -> Any:
    known = view.known
    witnesses = tuple(v for v in known.voters if v not in known.members and v not in members)
    made = real_made(view, ballot, members + witnesses, *rest, **more)
    short = len(made.members) - len(made.holdings)
    return dataclasses.replace(made, holdings=made.holdings + (0,) * short)


def whoever_is_there(start: int, members: Any) -> Any:
    return next(m for m, at in members.items() if at.state.step == start), True


def for_anyone(self: Any, event: Any) -> None:
    sender = event.sender
    if sender.key != self.board.me.key and self.board.hearing.heard(sender, event.relayed):
        self._hear(sender, event.message)


def yes(*_: Any) -> bool:
    return True


def no(*_: Any) -> bool:
    return False


SILENT_CHECK: Patch = (Checks, "needs_record", no)  # what follows from the fault must be found
MUTANTS: dict[str, list[Patch]] = {
    "any quorum": [(board, "is_quorum", any_quorum), (planned, "is_quorum", any_quorum)],
    "half without the lowest rank": [
        (board, "is_quorum", any_half), (planned, "is_quorum", any_half)
    ],
    "no freeze": [(duty, "is_frozen", no)],
    "promises ignored": [
        (Acceptor, "_allows", yes), (Acceptor, "_may_plan", yes),
        (Acceptor, "_may_accept", lambda self, accept: self._is_named(accept)),
    ],
    "accepted configuration not adopted": [(choice, "accepted", lambda answers: None)],
    "stale catch-up": [(duty, "may_catch_up", one_step_short)],
    "no record": [
        (Disk, "newest", first_record), (Disk, "finish", finish_first), (Disk, "first", {}),
        (Disk, "tear", lambda *_: None), SILENT_CHECK,
    ],
    "accepted said before it is stored": [(Acceptor, "_accept", accept_at_once), SILENT_CHECK],
    "coordinator without its own fence": [(Worker, "set_fence", no_own_fence)],
    "no pre-vote": [
        (MembershipRecovery, "look", propose_at_once), (MembershipRecovery, "may_answer", seated)
    ],
    "no relay": [(MembershipRecovery, "relays_for", no), (topology, "routes", lambda *_: ())],
    "bitmaps ignored": [
        (Worker, "adds_twice", yes),
        (Worker, "is_whole", lambda self, taken, n: n == len(self.running.members)),
    ],
    "witness as member": [(choice, "_made", with_witnesses)],
    "majority rolls back": [
        (choice, "all_present", lambda voters, keys: any_half(voters, keys))
    ],
    "source without the sum": [(choice, "source_of", whoever_is_there)],
    "accept without the promisers": [(Acceptor, "_is_named", yes)],
    "restarted voters in round 0": [
        (board.Board, "is_fresh", board.Board.has_seat), (Machine, "_receive", for_anyone)
    ],
}  # fmt: skip


CAUGHT_BY = {  # one of the histories that do
    "any quorum": "any_half",
    "half without the lowest rank": "any_half",
    "no freeze": "late_sums",
    "promises ignored": "late_accept",
    "accepted configuration not adopted": "accepted_alone",
    "stale catch-up": "stale_catch_up",
    "no record": "stale_pair",
    "accepted said before it is stored": "unstored",
    "coordinator without its own fence": "own_fence",
    "no pre-vote": "disruptive",
    "no relay": "one_way_cut",
    "bitmaps ignored": "lost_acknowledgement",
    "witness as member": "lone_trainer",
    "majority rolls back": "majority_returns",
    "source without the sum": "landed_source",
    "accept without the promisers": "late_prepare",
    "restarted voters in round 0": "forgotten_refusal",
}


@contextmanager
def mutant(name: str) -> Iterator[None]:
    """The code without one of its rules."""
    with ExitStack() as stack:
        for owner, attribute, value in MUTANTS[name]:
            stack.enter_context(patch.object(owner, attribute, value, create=True))
        yield


def fault_of(history: Callable[[int], Any], seed: int) -> str:
    """How a history goes wrong; "" if it does not."""
    try:
        history(seed)
    except AssertionError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def is_caught(name: str) -> bool:
    """Whether the history that is said to catch a mutant does, and goes well without it."""
    history = HISTORIES[CAUGHT_BY[name]]
    if fault_of(history, 0):
        return False
    with mutant(name):
        return any(fault_of(history, seed) for seed in range(3))


def main(argv: list[str]) -> int:
    """For each mutant: how many random histories catch it, and which named ones."""
    if "--caught" in argv:
        caught = {name: is_caught(name) for name in MUTANTS}
        print(json.dumps(caught))
        return 0 if all(caught.values()) else 1
    seeds, missed = int(argv[0]) if argv else 50, 0
    for name in argv[1:] or MUTANTS:
        with mutant(name):
            found = [s for s in range(seeds) if fault_of(consensus_seeds.history, s)]
            named = [n for n, h in HISTORIES.items() if any(fault_of(h, s) for s in range(2))]
        missed += not found and not named
        print(f"{name}: {len(found)} of {seeds} seeds {found[:3]}; {', '.join(named)}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
