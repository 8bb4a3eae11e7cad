"""Liveness: which boards are here, in whatever order they are heard."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoedge.mesh.node.liveness import PAST_INCARNATIONS, Change, Condition, Liveness, Timing

KEYS = st.sampled_from(["ada", "bob", "cyd"])
INCARNATIONS = st.integers(1, 4)
REPORTS = st.sampled_from([{}, {"queue_length": 1}, {"stalled_on": "disk"}, {"stalled_on": "moon"}])
EVENTS = st.one_of(
    st.tuples(st.just("heard"), KEYS, INCARNATIONS, st.integers(0, 20), REPORTS),
    st.tuples(st.just("check_timeouts")),
    st.tuples(st.just("left"), KEYS, INCARNATIONS),
    st.tuples(st.just("revoke"), KEYS),
)
HISTORIES = st.lists(st.tuples(EVENTS, st.floats(0, 0.9)), max_size=40)
Event = tuple[Any, ...]


class History:
    """A liveness to which events happen; `changes` come from the last event."""

    def __init__(self, beat_s: float = 60.0) -> None:  # a long one: this process never stands still
        self.now_s = 0.0
        self.changes: list[tuple[str, Change]] = []
        self.liveness = Liveness(lambda: self.now_s, Timing(beat_s=beat_s))
        self.liveness.on_change(lambda key, change: self.changes.append((key, change)))

    def happen(self, event: Event, passed_s: float = 0.0) -> None:
        self.now_s += passed_s
        self.changes.clear()
        name, *values = event
        getattr(self.liveness, name)(*values)

    def after(self, *events: Event) -> Liveness:
        for event in events:
            self.happen(event)
        return self.liveness

    def here(self) -> list[str]:
        """Keys of the boards that are alive or slow, in order."""
        return sorted(key for key, member in self.liveness.members.items() if member.is_here)


def play(
    history: Iterable[tuple[Event, float]], check: Callable[[History, dict[str, Any], Event], None]
) -> None:
    """Have `check` look after each event; it is also given the members before."""
    played = History()
    for event, passed_s in history:
        before = dict(played.liveness.members)
        played.happen(event, passed_s)
        check(played, before, event)


@given(HISTORIES)
def test_every_change_of_a_condition_is_told(history: list[tuple[Event, float]]) -> None:
    def check(played: History, before: dict[str, Any], event: Event) -> None:
        conditions = {key: member.condition for key, member in before.items()}
        members = played.liveness.members.items()
        if conditions != {key: member.condition for key, member in members}:
            assert played.changes

    play(history, check)


@given(HISTORIES)
def test_a_replaced_incarnation_never_comes_back(history: list[tuple[Event, float]]) -> None:
    gone: dict[str, set[int]] = {}

    def check(played: History, before: dict[str, Any], event: Event) -> None:
        for key, member in played.liveness.members.items():
            old = before.get(key)
            if old is not None and old.incarnation != member.incarnation:
                gone.setdefault(key, set()).add(old.incarnation)
            if member.condition is Condition.LEFT:
                gone.setdefault(key, set()).add(member.incarnation)
            assert not (member.is_here and member.incarnation in gone.get(key, set()))

    play(history, check)


@given(HISTORIES)
def test_only_silence_is_death(history: list[tuple[Event, float]]) -> None:
    heard_s: dict[str, float] = {}

    def check(played: History, before: dict[str, Any], event: Event) -> None:
        for key, change in played.changes:
            assert change is not Change.DIED or played.now_s - heard_s[key] >= 1.0
        if event[0] == "heard":
            heard_s[event[1]] = played.now_s
        if event[0] == "check_timeouts":
            assert all(played.now_s - heard_s[key] < 1.0 for key in played.here())

    play(history, check)


@given(HISTORIES)
def test_a_revoked_key_is_gone_for_good(history: list[tuple[Event, float]]) -> None:
    revoked: set[str] = set()

    def check(played: History, before: dict[str, Any], event: Event) -> None:
        revoked.update(event[1:] if event[0] == "revoke" else ())
        assert played.liveness.revoked == revoked
        assert not revoked & played.liveness.members.keys()

    play(history, check)


@given(st.lists(EVENTS, max_size=20), st.randoms())
def test_boards_do_not_mind_each_others_order(events: list[Event], random: Any) -> None:
    """Events of each board stay in order; events of different boards are shuffled."""
    queues: dict[str, list[Event]] = {}
    for event in events:
        if event[0] != "check_timeouts":
            queues.setdefault(event[1], []).append(event)
    ordered = History().after(*(event for queue in queues.values() for event in queue))
    mixed = History()
    while any(queues.values()):
        mixed.happen(random.choice([queue for queue in queues.values() if queue]).pop(0))
    assert mixed.liveness.members == ordered.members
    assert mixed.liveness.revoked == ordered.revoked


@given(st.permutations([(sequence, {"step": sequence}) for sequence in range(6)]))
def test_the_newest_report_counts(reports: list[tuple[int, dict[str, int]]]) -> None:
    heard = [("heard", "ada", 1, sequence, report) for sequence, report in reports]
    assert History().after(*heard).members["ada"].report == {"step": 5}


def test_a_restart_is_another_process() -> None:
    history = History()
    history.after(("heard", "ada", 1, 9, {"step": 4}), ("heard", "ada", 2))
    assert history.changes == [("ada", Change.RESTARTED)]
    restarted = history.liveness.members["ada"]
    assert restarted.report == {}
    history.happen(("heard", "ada", 1, 10))
    assert (history.liveness.members["ada"], history.changes) == (restarted, [])


@pytest.mark.parametrize("wait_s", [0.99, 1.0])
def test_silence_and_return(wait_s: float) -> None:
    history = History()
    history.happen(("heard", "ada", 1, 3, {"memory": 7}))
    history.happen(("check_timeouts",), wait_s)
    assert history.changes == ([] if wait_s < 1 else [("ada", Change.DIED)])
    assert history.liveness.members["ada"].report == ({"memory": 7} if wait_s < 1 else {})
    history.happen(("heard", "ada", 1, 4), 1.0)
    assert history.changes == ([] if wait_s < 1 else [("ada", Change.RETURNED)])
    assert history.here() == ["ada"]


def test_the_silence_of_a_board_that_was_stopped_itself_is_its_own() -> None:
    history = History(beat_s=0.25)
    history.happen(("heard", "ada", 1))
    history.happen(("check_timeouts",), 2.0)
    assert history.here() == ["ada"]
    history.happen(("check_timeouts",), 0.25)
    assert history.changes == [("ada", Change.DIED)]


def test_slow_is_not_dead() -> None:
    history = History()
    history.after(("heard", "ada", 1, 1), ("heard", "ada", 1, 2, {"stalled_on": "disk"}))
    assert history.liveness.members["ada"].condition is Condition.SLOW
    assert history.here() == ["ada"]
    history.happen(("heard", "ada", 1, 3))
    assert history.changes == [("ada", Change.RECOVERED)]


def test_as_much_of_the_past_is_kept_as_is_needed() -> None:
    liveness = History().after(*(("heard", "ada", number) for number in range(100)))
    assert len(liveness.members["ada"].past_incarnations) == PAST_INCARNATIONS
