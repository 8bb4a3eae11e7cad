"""Which board holds a session up, and when that is worth other shares."""

from __future__ import annotations

import pytest

from picoedge.engine.pace import LOOKS, Look, Pace

PLANNED = (0.02, 0.02, 0.02)


def look(s_per_token: float, late: dict[int, float] | None = None) -> Look:
    return Look(8, 8 * s_per_token, late or {1: 0.0, 2: 0.0})


def test_a_steady_pace_changes_nothing() -> None:
    pace = Pace()
    for s_per_token in (0.05, 0.04, 0.06, 0.09):
        assert pace.slower(look(s_per_token), PLANNED) == {}


def test_a_busy_moment_changes_nothing() -> None:
    pace = Pace()
    for s_per_token in (0.05, 0.5, 0.05, 0.5, 0.05):
        assert pace.slower(look(s_per_token, {1: 3.0, 2: 0.0}), PLANNED) == {}


def test_who_is_waited_for_is_the_slow_one_and_keeps_what_speed_it_has() -> None:
    pace = Pace()
    pace.slower(look(0.05), PLANNED)
    found = [pace.slower(look(0.2, {1: 0.1, 2: 1.4}), PLANNED) for _ in range(LOOKS)]
    assert found[-1] == {2: pytest.approx(0.1)}
    assert found[:-1] == [{}] * (LOOKS - 1)


def test_where_nobody_is_waited_for_the_hub_is_slow() -> None:
    pace = Pace()
    pace.slower(look(0.05), PLANNED)
    found = [pace.slower(look(0.2, {1: 0.1, 2: 0.1}), PLANNED) for _ in range(LOOKS)]
    assert found[-1] == {0: pytest.approx(0.1)}
