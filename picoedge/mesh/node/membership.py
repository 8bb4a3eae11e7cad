"""Membership as a pure state machine: boards, their condition, and an epoch that counts changes.

    state, changes = apply(state, event, now_s)

Events of different boards commute: the same set of events ends in the same state. For one board,
a report older than the last one changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

DEAD_AFTER_S = 1.0  # four heartbeats: one or two may be late on a busy LAN or a loaded board
# Remembered per board, so that late frames of a dead process are ignored. A board does not
# restart 16 times within the lifetime of a frame.
PAST_INCARNATIONS = 16

StateReport = Mapping[str, Any]


class Condition(str, Enum):
    """How a board is, as far as the others can tell."""

    ALIVE = "alive"
    SLOW = "slow"  # alive, but its worker stands still at its disk: wait, or plan around it
    DEAD = "dead"
    LEFT = "left"


@dataclass(frozen=True)
class Member:
    """One board: its process (`incarnation`) and the last report of its state."""

    key: str
    incarnation: int
    condition: Condition
    heard_s: float
    sequence: int = 0
    report: StateReport = field(default_factory=dict)
    stalled_on: str = ""
    past_incarnations: tuple[int, ...] = ()

    @property
    def is_here(self) -> bool:
        """Whether it is alive, slow or not."""
        return self.condition in (Condition.ALIVE, Condition.SLOW)


@dataclass(frozen=True)
class Membership:
    """Every board ever heard of. `epoch` counts changes of membership or condition."""

    members: Mapping[str, Member] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()
    epoch: int = 0


@dataclass(frozen=True)
class Heard:
    """A hello or a heartbeat. `stalled_on`: "disk" while the board's worker waits for it, or ""."""

    key: str
    incarnation: int
    sequence: int = 0
    report: StateReport = field(default_factory=dict)
    stalled_on: str = ""


@dataclass(frozen=True)
class Tick:
    """Time has passed: boards that have been silent too long are dead."""


@dataclass(frozen=True)
class Left:
    """A process announced its end."""

    key: str
    incarnation: int


@dataclass(frozen=True)
class Revoked:
    """A key is no longer allowed, and never will be again."""

    key: str


MemberEvent = Heard | Tick | Left | Revoked


class What(str, Enum):
    """The kind of a change."""

    JOINED = "joined"
    RESTARTED = "restarted"  # another process under the same key: it has no state of the last one
    RETURNED = "returned"  # the same process, after a silence
    SLOWED = "slowed"
    RECOVERED = "recovered"
    DIED = "died"
    LEFT = "left"
    REVOKED = "revoked"


@dataclass(frozen=True)
class Change:
    """A change of one board, and the board's last report."""

    key: str
    what: What
    report: StateReport = field(default_factory=dict)


Transition = tuple[Membership, tuple[Change, ...]]


def apply(
    state: Membership, event: MemberEvent, now_s: float, dead_after_s: float = DEAD_AFTER_S
) -> Transition:
    """The membership after an event, and the changes; each change is one epoch."""
    if isinstance(event, Tick):
        return _tick(state, now_s, dead_after_s)
    if isinstance(event, Revoked):
        return _revoked(state, event.key)
    if event.key in state.revoked:
        return state, ()
    return _heard(state, event, now_s) if isinstance(event, Heard) else _left(state, event)


def _heard(state: Membership, event: Heard, now_s: float) -> Transition:
    member = state.members.get(event.key)
    if member is None:
        return _with(state, _newcomer(event, now_s), What.JOINED)
    if event.incarnation in member.past_incarnations:
        return state, ()
    if event.incarnation != member.incarnation:
        fresh = replace(_newcomer(event, now_s), past_incarnations=_past(member))
        return _with(state, fresh, What.RESTARTED)
    return _heard_again(state, member, event, now_s)


def _heard_again(state: Membership, member: Member, event: Heard, now_s: float) -> Transition:
    """A report of the same process; a late one proves that it lives, but its content is old."""
    heard = replace(member, heard_s=max(now_s, member.heard_s))
    if event.sequence >= member.sequence:
        heard = replace(heard, sequence=event.sequence)
        heard = replace(heard, report=event.report, stalled_on=event.stalled_on)
    heard = replace(heard, condition=_condition(heard.stalled_on))
    if member.condition is Condition.DEAD:
        return _with(state, heard, What.RETURNED)
    if heard.condition is member.condition:
        return _with(state, heard)
    slowed = heard.condition is Condition.SLOW
    return _with(state, heard, What.SLOWED if slowed else What.RECOVERED)


def _left(state: Membership, event: Left) -> Transition:
    member = state.members.get(event.key)
    if member is None or member.incarnation != event.incarnation:
        return state, ()
    if member.incarnation in member.past_incarnations:
        return state, ()
    left = replace(member, condition=Condition.LEFT, past_incarnations=_past(member))
    return _with(state, left, What.LEFT)


def _tick(state: Membership, now_s: float, dead_after_s: float) -> Transition:
    changes: list[Change] = []
    for member in list(state.members.values()):
        if member.is_here and now_s - member.heard_s >= dead_after_s:
            state, more = _with(state, replace(member, condition=Condition.DEAD), What.DIED)
            changes += more
    return state, tuple(changes)


def _revoked(state: Membership, key: str) -> Transition:
    if key in state.revoked:
        return state, ()
    member = state.members.get(key)
    kept = {other: each for other, each in state.members.items() if other != key}
    after = Membership(kept, state.revoked | {key}, state.epoch + 1)
    return after, (Change(key, What.REVOKED, member.report if member else {}),)


def _with(state: Membership, member: Member, what: What | None = None) -> Transition:
    members = {**state.members, member.key: member}
    if what is None:
        return replace(state, members=members), ()
    changed = replace(state, members=members, epoch=state.epoch + 1)
    return changed, (Change(member.key, what, member.report),)


def _past(member: Member) -> tuple[int, ...]:
    return (*member.past_incarnations, member.incarnation)[-PAST_INCARNATIONS:]


def _newcomer(event: Heard, now_s: float) -> Member:
    condition = _condition(event.stalled_on)
    return Member(
        event.key,
        event.incarnation,
        condition,
        now_s,
        event.sequence,
        event.report,
        event.stalled_on,
    )


def _condition(stalled_on: str) -> Condition:
    return Condition.SLOW if stalled_on else Condition.ALIVE
