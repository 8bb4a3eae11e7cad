"""Which board slows a group down, and when that is worth another assignment."""

from __future__ import annotations

import pytest

from picoedge.jobs.progress_page import Work
from picoedge.jobs.stragglers import (
    CONFIRMATIONS,
    FADE_S,
    MAX_RELAPSES,
    RECOVERED,
    REST_S,
    SLOWDOWN,
    ComputeTimes,
    Sample,
    SpeedFactors,
    StragglerDetector,
)

PLANNED = (0.02, 0.02, 0.02)


def sample(s_per_token: float, late: dict[int, float] | None = None) -> Sample:
    return Sample(8, 8 * s_per_token, late or {1: 0.0, 2: 0.0})


def test_a_steady_pace_changes_nothing() -> None:
    detector = StragglerDetector()
    for s_per_token in (0.05, 0.04, 0.06, 0.09):
        assert detector.add(sample(s_per_token), PLANNED) == {}


def test_a_busy_moment_changes_nothing() -> None:
    detector = StragglerDetector()
    for s_per_token in (0.05, 0.5, 0.05, 0.5, 0.05):
        assert detector.add(sample(s_per_token, {1: 3.0, 2: 0.0}), PLANNED) == {}


def test_the_board_waited_for_is_the_slow_one_and_keeps_its_remaining_speed() -> None:
    detector = StragglerDetector()
    detector.add(sample(0.05), PLANNED)
    found = [detector.add(sample(0.2, {1: 0.1, 2: 1.4}), PLANNED) for _ in range(CONFIRMATIONS)]
    assert found[-1] == {2: pytest.approx(0.1)}
    assert found[:-1] == [{}] * (CONFIRMATIONS - 1)


def test_without_waiting_the_hub_is_the_slow_one() -> None:
    detector = StragglerDetector()
    detector.add(sample(0.05), PLANNED)
    found = [detector.add(sample(0.2, {1: 0.1, 2: 0.1}), PLANNED) for _ in range(CONFIRMATIONS)]
    assert found[-1] == {0: pytest.approx(0.1)}


# -- quick again ---------------------------------------------------------------------------------


def slow_board(factor: float = 0.2) -> SpeedFactors:
    """Board b computed at 0.9 of what was measured, and has become slow at 0 s."""
    speeds = SpeedFactors()
    for _ in range(CONFIRMATIONS):
        assert speeds.add({"a": 1.0, "b": 0.9}) == ([], {})
    speeds.slow_down("b", factor, 0.0)
    return speeds


def test_a_slow_board_is_planned_with_what_it_has_left() -> None:
    speeds = slow_board()
    assert (speeds.factor("a"), speeds.factor("b")) == (1.0, 0.2)
    for _ in range(20):
        assert speeds.add({"a": 1.0, "b": 0.9 * RECOVERED - 0.01}) == ([], {})
    assert speeds.factor("b") == 0.2


def test_a_board_that_is_as_quick_as_usual_has_its_share_again() -> None:
    speeds = slow_board()
    looks = [speeds.add({"b": 0.9 * RECOVERED + 0.01}) for _ in range(CONFIRMATIONS)]
    assert looks == [([], {})] * (CONFIRMATIONS - 1) + [(["b"], {})]
    assert speeds.factor("b") == 1.0
    assert speeds.add({"b": 0.9}) == ([], {})


def test_a_quick_moment_gives_nothing_back() -> None:
    speeds = slow_board()
    for rate in [0.9, 0.2] * 5:
        assert speeds.add({"a": 1.0, "b": rate}) == ([], {})
    assert speeds.add({"a": 1.0}) == ([], {})  # nothing was heard of it


def test_one_rate_beyond_all_others_is_not_what_is_usual() -> None:
    speeds = slow_board()
    speeds.add({"b": 50.0})
    found = [speeds.add({"b": 0.9}) for _ in range(CONFIRMATIONS)]
    assert ["b"] in [quick for quick, _ in found]


@pytest.mark.parametrize("usual", [1.0, 0.5])  # of another: 1 where nothing is known
def test_a_board_never_seen_quick_is_compared_with_the_others(usual: float) -> None:
    speeds = SpeedFactors()
    for _ in range(CONFIRMATIONS if usual < 1 else 0):
        speeds.add({"a": usual})
    speeds.add({"b": 0.3 * usual})
    speeds.slow_down("b", 0.2, 0.0)
    for _ in range(20):
        assert speeds.add({"b": 0.3 * usual}) == ([], {})
    assert [speeds.add({"b": 0.8 * usual})[0] for _ in range(CONFIRMATIONS)][-1] == ["b"]


def test_a_board_that_was_believed_in_vain_is_slow_again() -> None:
    speeds = slow_board()
    assert speeds.retry({"a"}, REST_S) == ["b"]
    found = [speeds.add({"a": 1.0, "b": 0.18}) for _ in range(CONFIRMATIONS)]
    assert found == [([], {})] * (CONFIRMATIONS - 1) + [([], {"b": pytest.approx(0.2)})]
    well = slow_board()
    well.retry({"a"}, REST_S)
    for _ in range(20):
        assert well.add({"b": 0.9 / SLOWDOWN + 0.01}) == ([], {})


def test_a_board_left_out_is_tried_after_a_rest_and_each_time_after_a_longer_one() -> None:
    speeds, now_s = slow_board(), 0.0
    for rest_s in (REST_S, 2 * REST_S, 4 * REST_S):
        assert speeds.retry({"a"}, now_s + rest_s - 1) == []
        assert speeds.retry({"a", "b"}, now_s + rest_s) == []  # it takes part: it is looked at
        now_s += rest_s
        assert speeds.retry({"a"}, now_s) == ["b"]
        assert speeds.factor("b") == 1.0
        assert speeds.retry({"a"}, now_s + 1e6) == []
        speeds.slow_down("b", 0.2, now_s)


def test_shares_do_not_swing_with_a_board_that_does() -> None:
    speeds, changes, slow_s = SpeedFactors(), 0, 0.0
    for look_s in range(2000):  # ten looks quick, ten slow
        rate = 0.9 if look_s % 20 < 10 else 0.1
        quick, slow = speeds.add({"b": rate})
        if rate < 0.2 and speeds.factor("b") == 1.0 and look_s % 20 == 12:
            slow = {"b": 0.1}  # as the pace of all tells
        for left in slow.values():
            speeds.slow_down("b", left, look_s)
        changes += len(quick) + len(slow)
        slow_s += speeds.factor("b") < 1
    assert changes <= 8
    assert slow_s > 1800


def test_a_board_s_own_computing_time_is_read_from_two_reports() -> None:
    own = ComputeTimes()
    assert own.s_per_token("b", Work(100, 10.0)) is None
    assert own.s_per_token("b", Work(100, 10.0)) is None  # the same report again
    assert own.s_per_token("b", Work(108, 10.4)) == pytest.approx(0.05)
    assert own.s_per_token("b", Work(116, 12.0, sync_s=9.0)) == pytest.approx(0.2)
    assert own.s_per_token("b", Work(4, 0.1)) is None  # another worker
    assert own.s_per_token("b", Work(6, 0.1)) is None  # a clock that stands
    own.reset()
    assert own.s_per_token("b", Work(300, 20.0)) is None


def test_a_board_that_grows_slower_still_has_become_slow_once() -> None:
    speeds = slow_board(0.5)
    for i in range(20):
        speeds.slow_down("b", 0.2, float(i))
    looks = [speeds.add({"b": 0.9}) for _ in range(CONFIRMATIONS)]
    assert looks[-1] == (["b"], {})


def test_the_patience_with_a_board_has_an_end() -> None:
    speeds = slow_board()
    for _ in range(1000):
        assert speeds.retry((), 1e9) == ["b"]
        speeds.slow_down("b", 0.2, 0.0)
    assert speeds.retry((), REST_S * 2**MAX_RELAPSES) == ["b"]


def test_relapses_are_forgotten_in_time() -> None:
    speeds = SpeedFactors()
    for i in range(10):
        speeds.slow_down("b", 0.2, float(i))
        speeds.retry((), float(i) + REST_S * 2**MAX_RELAPSES)
    later_s = 10 * FADE_S
    speeds.slow_down("b", 0.2, later_s)
    assert speeds.retry((), later_s + REST_S - 1) == []
    assert speeds.retry((), later_s + REST_S) == ["b"]
