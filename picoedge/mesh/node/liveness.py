"""Liveness: the boards that were heard, and their condition, by heartbeats and their absence.

Events of different boards commute: the same events end in the same liveness. For one board, a
report older than the last one changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

# Remembered per board, so that late frames of a dead process are ignored. A board does not
# restart 16 times within the lifetime of a frame.
PAST_INCARNATIONS = 16


@dataclass(frozen=True)
class Timing:
    """Seconds between heartbeats, of silence until a board is dead, and between searches."""

    beat_s: float = 0.25
    silence_s: float = 1.0  # four heartbeats: one or two may be late on a busy LAN or board
    seek_s: float = 1.0


class Condition(str, Enum):
    """A board's condition, as far as the others can tell."""

    ALIVE = "alive"
    SLOW = "slow"  # alive, but its worker stands still at its disk: wait, or plan around it
    DEAD = "dead"
    LEFT = "left"


class Change(str, Enum):
    """A change of one board's liveness."""

    JOINED = "joined"
    RESTARTED = "restarted"  # another process under the same key: it has no state of the last one
    RETURNED = "returned"  # the same process, after a silence
    SLOWED = "slowed"
    RECOVERED = "recovered"
    DIED = "died"
    LEFT = "left"
    REVOKED = "revoked"


@dataclass(frozen=True)
class Member:
    """One board: its process (`incarnation`) and, while it is here, its last report."""

    incarnation: int
    condition: Condition
    heard_s: float
    sequence: int = 0
    report: Mapping[str, Any] = field(default_factory=dict)
    past_incarnations: tuple[int, ...] = ()

    @property
    def is_here(self) -> bool:
        """Whether it is alive, slow or not."""
        return self.condition in (Condition.ALIVE, Condition.SLOW)

    @property
    def incarnations(self) -> tuple[int, ...]:
        """The past ones and the present one, as many as are remembered."""
        return (*self.past_incarnations, self.incarnation)[-PAST_INCARNATIONS:]


class Liveness:
    """Every board ever heard of, by key, and the revoked keys. Events happen at `clock()`.

    `clock` is in seconds and monotonic.
    """

    def __init__(self, clock: Callable[[], float], timing: Timing) -> None:
        self.members: dict[str, Member] = {}
        self.revoked: set[str] = set()
        self._clock, self._timing = clock, timing
        self._checked_s = clock()
        self._on_change: list[Callable[[str, Change], None]] = []

    def on_change(self, call: Callable[[str, Change], None]) -> None:
        """Have `call` called with the key and the kind of each change."""
        self._on_change.append(call)

    def heard(
        self, key: str, incarnation: int, sequence: int = 0, report: Mapping[str, Any] | None = None
    ) -> None:
        """A hello or a heartbeat came. `report["stalled_on"]` is "disk" while its worker waits."""
        known = self.members.get(key)
        if key in self.revoked or (known and incarnation in known.past_incarnations):
            return
        report, past = report or {}, known.incarnations if known else ()
        if known and incarnation == known.incarnation:
            past = known.past_incarnations
            if sequence < known.sequence:  # late: the process lives, but what it says is old
                sequence, report = known.sequence, known.report
        # Stalled on anything but its disk is a later version's word, unknown here.
        slow = report.get("stalled_on") == "disk"
        condition = Condition.SLOW if slow else Condition.ALIVE
        member = Member(incarnation, condition, self._clock(), sequence, report, past)
        self._set(key, member, _change(known, member))

    def left(self, key: str, incarnation: int) -> None:
        """A process announced its end."""
        known = self.members.get(key)
        if known and incarnation == known.incarnation and known.condition is not Condition.LEFT:
            past = known.incarnations
            left = replace(known, condition=Condition.LEFT, past_incarnations=past, report={})
            self._set(key, left, Change.LEFT)

    def revoke(self, key: str) -> None:
        """A key is no longer allowed, and never will be again."""
        if key not in self.revoked:
            self.revoked.add(key)
            self.members.pop(key, None)
            self._tell(key, Change.REVOKED)

    def check_timeouts(self) -> None:
        """Mark silent boards as dead; to be called once per heartbeat interval."""
        now_s, before_s = self._clock(), self._checked_s
        self._checked_s = now_s
        # If this process was itself stopped, it has read nothing: the silence was its own.
        if now_s - before_s >= self._timing.beat_s + self._timing.silence_s / 2:
            return
        for key, member in list(self.members.items()):
            if member.is_here and now_s - member.heard_s >= self._timing.silence_s:
                dead = replace(member, condition=Condition.DEAD, report={})
                self._set(key, dead, Change.DIED)

    def _set(self, key: str, member: Member, change: Change | None) -> None:
        self.members[key] = member
        if change is not None:
            self._tell(key, change)

    def _tell(self, key: str, change: Change) -> None:
        for call in self._on_change:
            call(key, change)


def _change(before: Member | None, after: Member) -> Change | None:
    """The change made by a hello or a heartbeat."""
    if before is None:
        return Change.JOINED
    if after.incarnation != before.incarnation:
        return Change.RESTARTED
    if before.condition is Condition.DEAD:
        return Change.RETURNED
    if after.condition is before.condition:
        return None
    return Change.SLOWED if after.condition is Condition.SLOW else Change.RECOVERED
