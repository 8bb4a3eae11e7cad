"""A ration of bytes: a burst that grows again, for each peer apart."""

from __future__ import annotations

from picoedge.mesh.transport.strikes import Ration

RATE = 100


def test_a_burst_is_spent_and_grows_again() -> None:
    ration: Ration[str] = Ration(1000)
    ration.over({}, 10.0)
    assert not ration.over({"a": (900, RATE), "b": (10, RATE)}, 10.0)
    assert ration.over({"a": (300, RATE), "b": (10, RATE)}, 11.0) == {"a"}
    assert not ration.over({"a": (0, RATE), "b": (500, RATE)}, 13.0)
    assert not ration.over({"a": (1000, RATE)}, 30.0)


def test_a_late_count_allows_for_what_came_meanwhile() -> None:
    ration: Ration[str] = Ration(1000)
    ration.over({}, 0.0)
    assert not ration.over({"a": (5000, RATE)}, 50.0)
    assert ration.over({"a": (1, RATE)}, 50.0) == {"a"}


def test_a_count_at_once_after_the_last_is_as_one() -> None:
    ration: Ration[str] = Ration(1000)
    assert not ration.over({"a": (600, RATE)}, 5.0)
    assert ration.over({"a": (600, RATE)}, 5.0) == {"a"}
