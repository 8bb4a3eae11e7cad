"""Membership as a pure function: who is here, whatever the order in which it is heard."""

from __future__ import annotations

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoedge.mesh.node.membership import (
    PAST_INCARNATIONS,
    Change,
    Condition,
    Heard,
    Left,
    MemberEvent,
    Membership,
    Revoked,
    Tick,
    What,
    apply,
)

KEYS = st.sampled_from(["ada", "bob", "cyd"])
INCARNATIONS = st.integers(1, 4)
REPORTS = st.sampled_from([{}, {"queue_length": 1}, {"memory": 7}])
STALLS = st.sampled_from(["", "disk"])
EVENTS = st.one_of(
    st.builds(Heard, KEYS, INCARNATIONS, st.integers(0, 20), REPORTS, STALLS),
    st.builds(Tick),
    st.builds(Left, KEYS, INCARNATIONS),
    st.builds(Revoked, KEYS),
)
HISTORIES = st.lists(st.tuples(EVENTS, st.floats(0, 0.9)), max_size=40)


def play(
    history: list[tuple[MemberEvent, float]],
) -> list[tuple[Membership, MemberEvent, float, Membership, tuple[Change, ...]]]:
    """Each step: the state before, the event, its time, the state after, what changed."""
    steps, state, now_s = [], Membership(), 0.0
    for event, passed_s in history:
        now_s += passed_s
        after, changes = apply(state, event, now_s)
        steps.append((state, event, now_s, after, changes))
        state = after
    return steps


def here(state: Membership) -> list[str]:
    """Keys of the boards that are alive or slow, in order."""
    return sorted(key for key, member in state.members.items() if member.is_here)


def after(*events: tuple[MemberEvent, float]) -> Membership:
    return reduce(lambda state, each: apply(state, *each)[0], events, Membership())


@given(HISTORIES)
def test_every_change_is_one_epoch(history: list[tuple[MemberEvent, float]]) -> None:
    for before, _, _, state, changes in play(history):
        assert state.epoch == before.epoch + len(changes)
        conditions = {key: member.condition for key, member in before.members.items()}
        if conditions != {key: member.condition for key, member in state.members.items()}:
            assert changes


@given(HISTORIES)
def test_what_was_replaced_never_comes_back(history: list[tuple[MemberEvent, float]]) -> None:
    gone: dict[str, set[int]] = {}
    for before, _, _, state, _ in play(history):
        for key, member in state.members.items():
            old = before.members.get(key)
            if old is not None and old.incarnation != member.incarnation:
                gone.setdefault(key, set()).add(old.incarnation)
            if member.condition is Condition.LEFT:
                gone.setdefault(key, set()).add(member.incarnation)
            assert not (member.is_here and member.incarnation in gone.get(key, set()))


@given(HISTORIES)
def test_only_silence_is_death(history: list[tuple[MemberEvent, float]]) -> None:
    heard_s: dict[str, float] = {}
    for _, event, now_s, state, changes in play(history):
        for change in changes:
            assert change.what is not What.DIED or now_s - heard_s[change.key] >= 1.0
        if isinstance(event, Heard):
            heard_s[event.key] = now_s
        if isinstance(event, Tick):
            assert all(now_s - heard_s[key] < 1.0 for key in here(state))


@given(HISTORIES)
def test_a_revoked_key_is_gone_for_good(history: list[tuple[MemberEvent, float]]) -> None:
    revoked: set[str] = set()
    for _, event, _, state, _ in play(history):
        revoked |= {event.key} if isinstance(event, Revoked) else set()
        assert state.revoked == revoked
        assert not revoked & state.members.keys()


@given(st.lists(EVENTS, max_size=20), st.randoms())
def test_boards_do_not_mind_each_others_order(events: list[MemberEvent], random: object) -> None:
    """Events of each board stay in order, those of different boards are mixed anew."""
    named = {"ada": 0, "bob": 1, "cyd": 2}
    queues = [[] for _ in named]
    for event in events:
        if not isinstance(event, Tick):
            queues[named[event.key]].append(event)
    ordered = [(event, 0.5) for queue in queues for event in queue]
    mixed = []
    while any(queues):
        queue = random.choice([queue for queue in queues if queue])  # type: ignore[attr-defined]
        mixed.append((queue.pop(0), 0.5))
    assert after(*mixed) == after(*ordered)


@given(st.permutations([(sequence, {"step": sequence}) for sequence in range(6)]))
def test_the_newest_report_counts(reports: list[tuple[int, dict[str, int]]]) -> None:
    heard = [(Heard("ada", 1, sequence, report), 0.0) for sequence, report in reports]
    assert after(*heard).members["ada"].report == {"step": 5}


def test_a_restart_is_another_process() -> None:
    state = after((Heard("ada", 1, 9, {"step": 4}), 0.0))
    state, changes = apply(state, Heard("ada", 2), 0.1)
    assert [change.what for change in changes] == [What.RESTARTED]
    late, changes = apply(state, Heard("ada", 1, 10), 0.2)
    assert (late, changes) == (state, ())
    assert state.members["ada"].report == {}


@pytest.mark.parametrize("wait_s", [0.99, 1.0])
def test_silence_and_return(wait_s: float) -> None:
    state = after((Heard("ada", 1, 3, {"memory": 7}), 0.0))
    state, changes = apply(state, Tick(), wait_s)
    assert changes == (() if wait_s < 1 else (Change("ada", What.DIED, {"memory": 7}),))
    state, changes = apply(state, Heard("ada", 1, 4), 2.0)
    assert changes == (() if wait_s < 1 else (Change("ada", What.RETURNED, {}),))
    assert here(state) == ["ada"]


def test_slow_is_not_dead() -> None:
    state = after((Heard("ada", 1, 1), 0.0), (Heard("ada", 1, 2, stalled_on="disk"), 0.5))
    assert state.members["ada"].condition is Condition.SLOW
    assert here(state) == ["ada"]
    _, changes = apply(state, Heard("ada", 1, 3), 0.6)
    assert [change.what for change in changes] == [What.RECOVERED]


def test_as_much_of_the_past_is_kept_as_is_needed() -> None:
    state = after(*((Heard("ada", number), 0.0) for number in range(100)))
    assert len(state.members["ada"].past_incarnations) == PAST_INCARNATIONS
