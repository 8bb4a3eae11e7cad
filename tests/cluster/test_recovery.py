"""The state machine of a session's recovery: no board is held against its past."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from picoedge.cluster.recovery import (
    GIVE_UP,
    GO,
    HALF_LIFE_S,
    LONGEST_REST_S,
    MOST_IN_A_ROW,
    RETURN_S,
    SETTLE_S,
    SILENCE_S,
    Asked,
    Assembled,
    BoardLost,
    BoardRefused,
    Event,
    Found,
    HubPaused,
    OwnDaemonGone,
    OwnDaemonSilent,
    Passed,
    Recovery,
    TooSmall,
)

HUB, B2, B3, B4 = "hub", "b2", "b3", "b4"
ALL = frozenset((HUB, B2, B3))

KEYS = st.sampled_from([HUB, B2, B3, B4])
EVENTS = st.one_of(
    st.sampled_from(
        [Asked(), Passed(), HubPaused(), OwnDaemonGone(), OwnDaemonSilent(), TooSmall()]
    ),
    st.builds(BoardLost, KEYS),
    st.builds(BoardRefused, KEYS),
    st.builds(Assembled, st.frozensets(KEYS).map(lambda keys: keys | {HUB})),
    st.builds(Found, st.frozensets(KEYS).map(lambda keys: keys | {HUB})),
)
LIVES = st.lists(st.tuples(EVENTS, st.floats(0.0, 100.0)), max_size=60)


def running(members: frozenset[str] = ALL) -> Recovery:
    recovery = Recovery(HUB)
    recovery.on(Assembled(members), 0.0)
    return recovery


def lived(life: list[tuple[Event, float]]) -> tuple[Recovery, float]:
    """The state after a life, and the time."""
    recovery, now_s = Recovery(HUB), 0.0
    for event, after_s in life:
        now_s += after_s
        recovery.on(event, now_s)
    return recovery, now_s


# -- properties --------------------------------------------------------------------------------


@given(LIVES)
def test_no_board_is_left_out_for_long_after_any_history(life: list[tuple[Event, float]]) -> None:
    recovery, now_s = lived(life)
    assert recovery.left_out(now_s) <= {B2, B3, B4}
    assert recovery.left_out(now_s + LONGEST_REST_S) == frozenset()


@given(LIVES)
def test_the_next_question_starts_anew_after_any_history(life: list[tuple[Event, float]]) -> None:
    recovery, now_s = lived(life)
    assert recovery.on(Asked(), now_s) == GO
    assert recovery.on(BoardLost(B2), now_s) == GO
    recovery.on(Assembled(ALL), now_s)
    assert not recovery.on(OwnDaemonGone(), now_s).gives_up


@given(LIVES)
def test_a_board_that_was_well_for_long_is_as_good_as_new(life: list[tuple[Event, float]]) -> None:
    recovery, now_s = lived(life)
    recovery.on(Asked(), now_s := now_s + 20 * HALF_LIFE_S)
    recovery.on(Assembled(ALL), now_s)
    recovery.on(BoardLost(B2), now_s)
    assert recovery.left_out(now_s) == frozenset()


@given(st.lists(st.tuples(EVENTS, st.floats(0.0, 5.0)), max_size=60))
def test_without_a_pass_it_gives_up(life: list[tuple[Event, float]]) -> None:
    """Whatever the order of failures: no question waits for ever."""
    recovery, now_s = running(), 0.0
    good = (Asked, Passed, HubPaused, Found)
    failures = [each for each in life if not isinstance(each[0], good)]
    for _ in range(200):
        for event, after_s in [*failures, (TooSmall(), 1.0)]:
            now_s += after_s
            if recovery.on(event, now_s).gives_up:
                return
    raise AssertionError(f"after {now_s} s it still goes on")


# -- losses ------------------------------------------------------------------------------------


def test_one_loss_is_an_accident_and_two_are_none() -> None:
    recovery = running()
    recovery.on(BoardLost(B2), 1.0)
    assert recovery.left_out(1.0) == frozenset()
    recovery.on(BoardLost(B2), 10.0)
    assert recovery.left_out(10.0) == {B2}


def test_rests_grow_and_losses_fade() -> None:
    def rest_after(losses: int, apart_s: float) -> float:
        recovery, now_s = running(), 0.0
        for _ in range(losses):
            recovery.on(Passed(), now_s)
            recovery.on(BoardLost(B2), now_s := now_s + apart_s)
        seconds = [s / 10 for s in range(int(LONGEST_REST_S * 10) + 2)]
        return next(s for s in seconds if not recovery.left_out(now_s + s))

    assert 0.0 < rest_after(2, 5.0) < rest_after(3, 5.0) < rest_after(5, 5.0)
    assert rest_after(12, 1.0) <= LONGEST_REST_S + 0.1
    assert rest_after(20, 5 * HALF_LIFE_S) == 0.0


def test_a_board_that_refuses_rests_at_once() -> None:
    recovery = running()
    recovery.on(BoardRefused(B2), 1.0)
    assert recovery.left_out(1.0) == {B2}


def test_a_loss_of_all_boards_at_once_counts_against_none() -> None:
    recovery = running()
    for now_s in (1.0, 20.0, 40.0):
        recovery.on(BoardLost(B2), now_s)
        recovery.on(BoardLost(B3), now_s + 1.0)
        assert recovery.left_out(now_s + 1.0) == frozenset()
        recovery.on(Found(ALL), now_s + 2.0)


def test_neither_does_one_after_which_no_board_is_heard() -> None:
    recovery = running()
    for now_s in (1.0, 20.0, 40.0):
        recovery.on(BoardLost(B2), now_s)
        recovery.on(Found(frozenset((HUB,))), now_s + 1.0)
        assert recovery.left_out(now_s + 1.0) == frozenset()


def test_but_boards_lost_at_different_times_do_count() -> None:
    recovery = running()
    for now_s in (1.0, 30.0):
        recovery.on(BoardLost(B2), now_s)
        recovery.on(BoardLost(B3), now_s + 15.0)
    assert recovery.left_out(45.0) == {B3}


def test_a_failure_after_a_pause_of_the_hub_counts_against_no_board() -> None:
    recovery = running(frozenset((HUB, B2)))
    for now_s in (10.0, 50.0, 90.0):
        recovery.on(HubPaused(), now_s)
        recovery.on(BoardLost(B2), now_s + 0.5)
        assert recovery.left_out(now_s + 0.5) == frozenset()


# -- waiting -----------------------------------------------------------------------------------


def test_the_own_daemon_is_waited_for_and_then_given_up() -> None:
    recovery = running()
    first = recovery.on(OwnDaemonGone(), 1.0)
    assert first.wait_s > 0
    assert first.awaited == {HUB}
    assert not recovery.on(OwnDaemonGone(), RETURN_S).gives_up
    assert recovery.on(OwnDaemonGone(), 1.0 + RETURN_S) == GIVE_UP


def test_a_daemon_of_this_board_that_stands_still_is_waited_for_longer() -> None:
    recovery = running()
    first = recovery.on(OwnDaemonSilent(), 1.0)
    assert (first.awaited, first.limit_s) == ({HUB}, SILENCE_S)
    assert not recovery.on(OwnDaemonSilent(), 1.0 + 2 * RETURN_S).gives_up
    assert recovery.on(OwnDaemonSilent(), 1.0 + SILENCE_S) == GIVE_UP


def test_a_daemon_that_is_back_has_a_moment_to_hear_of_the_others() -> None:
    recovery = running()
    recovery.on(OwnDaemonGone(), 1.0)
    assert recovery.on(Found(frozenset((HUB,))), 1.5).wait_s > 0
    assert recovery.on(Found(ALL), 2.0) == GO
    assert recovery.on(Found(frozenset((HUB,))), 2.0 + SETTLE_S) == GO


def test_a_board_without_which_the_model_does_not_fit_is_waited_for() -> None:
    recovery = running()
    recovery.on(BoardLost(B2), 1.0)
    recovery.on(Found(ALL - {B2}), 2.0)
    assert recovery.on(TooSmall(), 2.0).awaited == {B2}
    recovery.on(Found(ALL), 10.0)
    assert recovery.on(Assembled(ALL), 10.0) == GO


def test_and_so_is_one_that_rests_at_once() -> None:
    recovery = running()
    recovery.on(BoardRefused(B2), 1.0)
    assert recovery.left_out(1.0) == {B2}
    assert recovery.on(TooSmall(), 1.0) == GO
    assert recovery.left_out(1.0) == frozenset()


def test_a_session_that_never_ran_waits_for_nothing() -> None:
    assert Recovery(HUB).on(OwnDaemonGone(), 0.0) == GIVE_UP
    assert Recovery(HUB).on(TooSmall(), 0.0) == GIVE_UP


def test_nothing_is_absent_that_would_help() -> None:
    assert running().on(TooSmall(), 0.0) == GIVE_UP


def test_losses_without_a_pass_between_them_end_the_question() -> None:
    recovery = running()
    for i in range(MOST_IN_A_ROW):
        assert recovery.on(BoardLost(B2), i * HALF_LIFE_S) == GO
    assert recovery.on(BoardLost(B2), MOST_IN_A_ROW * HALF_LIFE_S) == GIVE_UP
    recovery.on(Asked(), MOST_IN_A_ROW * HALF_LIFE_S)
    assert recovery.on(BoardLost(B2), MOST_IN_A_ROW * HALF_LIFE_S) == GO
