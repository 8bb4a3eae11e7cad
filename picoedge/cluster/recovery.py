"""Recovery of a session whose boards fail: a state machine. Pure: each event comes with the time.

    recovery.on(BoardLost("b2's key"), now_s)    -> GO: plan and load anew
    recovery.left_out(now_s)                     -> boards to plan without, at present
    recovery.on(OwnDaemonGone(), now_s)          -> wait a moment, then look again
    recovery.on(Asked(), now_s)                  the next question begins with all its attempts

No board is held against its past. A failure counts half after HALF_LIFE_S. A board that is lost
again meanwhile rests, each time for twice as long, up to LONGEST_REST_S. Failures of all boards at
once, and those after a pause of the hub itself (a closed laptop, a stopped process), count against
none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

HALF_LIFE_S = 120.0  # after which a failure counts half
TOLERATED = 1.5  # failures, faded, up to which a board is tried again at once: one is an accident
_REST_S, LONGEST_REST_S = 5.0, 30.0  # of a board that is left out, the first time and at most
SHARED_S = 5.0  # failures of all boards within it have one cause: this board, or its network
PAUSE_GRACE_S = 20.0  # after a pause of the hub: Wi-Fi needs seconds to be back
SETTLE_S = 3.0  # for a daemon that has just started to hear of the others
RETURN_S = 30.0  # to wait for a board, or this one's daemon: most start again within it
SILENCE_S = 180.0  # for a daemon of this board that is there, but stands still
_LOOK_S = 0.5  # between two looks for them
MOST_IN_A_ROW = 12  # failures without one finished pass: then the network itself must be at fault


@dataclass(frozen=True)
class Asked:
    """A question begins."""


@dataclass(frozen=True)
class Passed:
    """A forward pass was completed."""


@dataclass(frozen=True)
class Assembled:
    """The model is loaded on these boards, by key; the hub is among them."""

    members: frozenset[str]


@dataclass(frozen=True)
class Found:
    """These boards answer, by key."""

    present: frozenset[str]


@dataclass(frozen=True)
class HubPaused:
    """The hub's own process stood still for a while, until now."""


@dataclass(frozen=True)
class BoardLost:
    """A board died, hangs, is cut off, or cannot be reached. The hub's: the others lost it."""

    key: str


@dataclass(frozen=True)
class BoardRefused:
    """A board says that it cannot take part, or nothing: at once, it would be the same again."""

    key: str


@dataclass(frozen=True)
class OwnDaemonGone:
    """The daemon of the hub's board has ended."""


@dataclass(frozen=True)
class OwnDaemonSilent:
    """The daemon of the hub's board is there, and does not answer: it was stopped, or is busy."""


@dataclass(frozen=True)
class TooSmall:
    """The boards that are there cannot hold the model."""


Event = (
    Asked | Passed | Assembled | Found | HubPaused
    | BoardLost | BoardRefused | OwnDaemonGone | OwnDaemonSilent | TooSmall
)  # fmt: skip


@dataclass(frozen=True)
class Decision:
    """Go on after `wait_s` seconds; or, with `gives_up`, tell the user that this question failed.

    `awaited`: boards that are waited for, by key, for `limit_s` in all; the hub's own for its
    daemon.
    """

    wait_s: float = 0.0
    awaited: frozenset[str] = frozenset()
    gives_up: bool = False
    limit_s: float = RETURN_S


GO, GIVE_UP = Decision(), Decision(gives_up=True)


@dataclass
class _Failures:
    """Of one board: how many, faded until `counted_s`, and until when it rests."""

    count: float = 0.0
    counted_s: float = 0.0
    rests_until_s: float = float("-inf")

    def faded(self, now_s: float) -> float:
        return self.count * math.pow(0.5, max(0.0, now_s - self.counted_s) / HALF_LIFE_S)

    def add(self, weight: float, now_s: float) -> None:
        self.count, self.counted_s = self.faded(now_s) + weight, now_s
        if self.count > TOLERATED:
            doublings = self.count - TOLERATED - 0.5
            self.rests_until_s = now_s + min(_REST_S * 2.0**doublings, LONGEST_REST_S)


@dataclass
class Recovery:
    """The state of one session on the board whose key is `own`. `on` takes events."""

    own: str
    _failures: dict[str, _Failures] = field(default_factory=dict)
    _recent: dict[str, float] = field(default_factory=dict)  # when each board was lost last
    _members: frozenset[str] = frozenset()  # of the last group; none before the first
    _present: frozenset[str] = frozenset()
    _in_a_row: int = 0  # failures since the last pass or question
    _waits_since_s: float | None = None
    _settles_until_s: float = float("-inf")
    _paused_s: float = float("-inf")

    def on(self, event: Event, now_s: float) -> Decision:
        """The decision after `event`."""
        match event:
            case Asked() | Passed():
                self._in_a_row, self._waits_since_s = 0, None
            case Assembled(members):
                self._members = self._present = members
            case HubPaused():
                self._paused_s, self._settles_until_s = now_s, now_s + SETTLE_S
                self._failures.clear()
            case Found(present):
                return self._found(present, now_s)
            case BoardLost(key):
                return self._lost(key, 1.0, now_s)
            case BoardRefused(key):
                return self._lost(key, 2.0, now_s)
            case OwnDaemonGone():
                return self._wait_for_own_daemon(now_s, RETURN_S)
            case OwnDaemonSilent():
                return self._wait_for_own_daemon(now_s, SILENCE_S)
            case TooSmall():
                return self._too_small(now_s)
        return GO

    def left_out(self, now_s: float) -> frozenset[str]:
        """Boards that rest at present, by key."""
        failures = self._failures.items()
        return frozenset(key for key, board in failures if board.rests_until_s > now_s)

    @property
    def _absent(self) -> frozenset[str]:
        return self._members - self._present

    def _found(self, present: frozenset[str], now_s: float) -> Decision:
        """A daemon that has just started, or a hub that has just woken, knows of no board yet."""
        self._present = present
        others = self._members - {self.own}
        if len(others) > 1 and not others & present:
            self._forgive(others, now_s)
        if now_s < self._settles_until_s and self._absent - self.left_out(now_s):
            return Decision(_LOOK_S / 2, self._absent)
        return GO

    def _lost(self, key: str, weight: float, now_s: float) -> Decision:
        self._in_a_row += 1
        if key != self.own and now_s >= self._paused_s + PAUSE_GRACE_S:
            self._failures.setdefault(key, _Failures()).add(weight, now_s)
        self._recent[key] = now_s
        others = self._members - {self.own}
        if len(others) > 1 and others <= self._recent.keys():
            self._forgive(others, now_s)
        return GIVE_UP if self._in_a_row > MOST_IN_A_ROW else GO

    def _forgive(self, others: frozenset[str], now_s: float) -> None:
        """All boards are gone, the last one a moment ago: that is no fault of theirs."""
        times = [at for key, at in self._recent.items() if key in others]
        if times and now_s - min(times) <= SHARED_S:
            for key in others:
                self._failures.pop(key, None)

    def _too_small(self, now_s: float) -> Decision:
        if self.left_out(now_s) and self._in_a_row <= MOST_IN_A_ROW:
            for board in self._failures.values():  # they are needed: no time for a rest
                board.rests_until_s = float("-inf")
            self._in_a_row += 1
            return GO
        return self._wait(self._absent, now_s, RETURN_S) if self._absent else GIVE_UP

    def _wait_for_own_daemon(self, now_s: float, limit_s: float) -> Decision:
        self._settles_until_s = now_s + _LOOK_S + SETTLE_S
        return self._wait(frozenset((self.own,)), now_s, limit_s)

    def _wait(self, awaited: frozenset[str], now_s: float, limit_s: float) -> Decision:
        if not self._members:  # a session that never ran: waiting mends nothing
            return GIVE_UP
        if self._waits_since_s is None:
            self._waits_since_s = now_s
        if now_s - self._waits_since_s >= limit_s:
            return GIVE_UP
        return Decision(_LOOK_S, awaited, limit_s=limit_s)
