"""Who is here: a list of boards and an epoch, changed by one function without clock or socket.

    state, changes = apply(state, event, now_s)

Events about different boards may come in any order: the same set of events ends in the same
state. Of one board, a report that is older than one already heard changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

SILENCE_S = 1.0
# A process that was replaced may still have frames under way; nobody restarts this often in
# the time a frame can be.
BURIED = 16

Report = Mapping[str, Any]


class Condition(str, Enum):
    """How a board is, as far as the others can tell."""

    ALIVE = "alive"
    SLOW = "slow"  # it says what it waits for: it is waited for, or planned around
    DEAD = "dead"
    LEFT = "left"


HERE = (Condition.ALIVE, Condition.SLOW)


@dataclass(frozen=True)
class Member:
    """One board: its process (`incarnation`), and what it last said of itself."""

    key: str
    incarnation: int
    condition: Condition
    heard_s: float
    sequence: int = 0
    report: Report = field(default_factory=dict)
    links: int = 0
    buried: tuple[int, ...] = ()

    @property
    def is_here(self) -> bool:
        return self.condition in HERE


@dataclass(frozen=True)
class Membership:
    """All boards ever heard, and how often who they are or how they are has changed."""

    members: Mapping[str, Member] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()
    epoch: int = 0

    @property
    def here(self) -> tuple[str, ...]:
        """Keys of the boards that are alive or slow, in order."""
        return tuple(sorted(key for key, member in self.members.items() if member.is_here))


@dataclass(frozen=True)
class Heard:
    """A hello or a heartbeat; `report["waiting"]` says what a slow board waits for."""

    key: str
    incarnation: int
    sequence: int = 0
    report: Report = field(default_factory=dict)


@dataclass(frozen=True)
class Tick:
    """Time has passed: whoever was silent too long is dead."""


@dataclass(frozen=True)
class Left:
    """A process said that it goes."""

    key: str
    incarnation: int


@dataclass(frozen=True)
class Revoked:
    """A key is no longer allowed, and never will be."""

    key: str


@dataclass(frozen=True)
class LinkUp:
    """A connection with the board stands."""

    key: str


@dataclass(frozen=True)
class LinkDown:
    """A connection with the board is gone; the board itself may be well."""

    key: str


Event = Heard | Tick | Left | Revoked | LinkUp | LinkDown


class What(str, Enum):
    """What a change is, for those who act on it."""

    JOINED = "joined"
    RESTARTED = "restarted"  # another process under the same key: it holds nothing of before
    RETURNED = "returned"  # the same process, after a silence
    SLOWED = "slowed"
    RECOVERED = "recovered"
    DIED = "died"
    LEFT = "left"
    REVOKED = "revoked"


@dataclass(frozen=True)
class Change:
    """One board's change, and what it last reported before it."""

    key: str
    what: What
    report: Report = field(default_factory=dict)


Step = tuple[Membership, tuple[Change, ...]]


def apply(state: Membership, event: Event, now_s: float, silence_s: float = SILENCE_S) -> Step:
    """The membership after an event, and what changed. Every change is one epoch."""
    if isinstance(event, Tick):
        return _tick(state, now_s, silence_s)
    if isinstance(event, Revoked):
        return _revoked(state, event.key)
    if event.key in state.revoked:
        return state, ()
    if isinstance(event, Heard):
        return _heard(state, event, now_s)
    if isinstance(event, Left):
        return _left(state, event)
    return _linked(state, event.key, 1 if isinstance(event, LinkUp) else -1)


def _heard(state: Membership, event: Heard, now_s: float) -> Step:
    member = state.members.get(event.key)
    if member is None:
        return _with(state, _newcomer(event, now_s), What.JOINED)
    if event.incarnation in member.buried:
        return state, ()
    if event.incarnation != member.incarnation:
        buried = (*member.buried, member.incarnation)[-BURIED:]
        fresh = replace(_newcomer(event, now_s), links=member.links, buried=buried)
        return _with(state, fresh, What.RESTARTED)
    return _heard_again(state, member, event, now_s)


def _heard_again(state: Membership, member: Member, event: Heard, now_s: float) -> Step:
    """Of the same process: a late report still shows that it lives, but says nothing new."""
    heard = replace(member, heard_s=max(now_s, member.heard_s))
    if event.sequence >= member.sequence:
        heard = replace(heard, sequence=event.sequence, report=event.report)
    heard = replace(heard, condition=_condition(heard.report))
    if member.condition is Condition.DEAD:
        return _with(state, heard, What.RETURNED)
    if heard.condition is member.condition:
        return _with(state, heard)
    slowed = heard.condition is Condition.SLOW
    return _with(state, heard, What.SLOWED if slowed else What.RECOVERED)


def _left(state: Membership, event: Left) -> Step:
    member = state.members.get(event.key)
    if member is None or member.incarnation != event.incarnation:
        return state, ()
    if member.incarnation in member.buried:
        return state, ()
    buried = (*member.buried, member.incarnation)[-BURIED:]
    return _with(state, replace(member, condition=Condition.LEFT, buried=buried), What.LEFT)


def _tick(state: Membership, now_s: float, silence_s: float) -> Step:
    changes: list[Change] = []
    for member in list(state.members.values()):
        if member.is_here and now_s - member.heard_s >= silence_s:
            dead = replace(member, condition=Condition.DEAD)
            state, more = _with(state, dead, What.DIED)
            changes += more
    return state, tuple(changes)


def _revoked(state: Membership, key: str) -> Step:
    if key in state.revoked:
        return state, ()
    member = state.members.get(key)
    kept = {other: each for other, each in state.members.items() if other != key}
    after = Membership(kept, state.revoked | {key}, state.epoch + 1)
    return after, (Change(key, What.REVOKED, member.report if member else {}),)


def _linked(state: Membership, key: str, more: int) -> Step:
    member = state.members.get(key)
    if member is None:
        return state, ()
    return _with(state, replace(member, links=max(0, member.links + more)))


def _with(state: Membership, member: Member, what: What | None = None) -> Step:
    members = {**state.members, member.key: member}
    if what is None:
        return replace(state, members=members), ()
    changed = replace(state, members=members, epoch=state.epoch + 1)
    return changed, (Change(member.key, what, member.report),)


def _newcomer(event: Heard, now_s: float) -> Member:
    condition = _condition(event.report)
    return Member(event.key, event.incarnation, condition, now_s, event.sequence, event.report)


def _condition(report: Report) -> Condition:
    return Condition.SLOW if report.get("waiting") else Condition.ALIVE
