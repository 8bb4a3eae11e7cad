"""Strikes count what a key does now, and are forgotten."""

from __future__ import annotations

from picoedge.mesh.transport.strikes import FADED_S, Strikes


def test_strikes_are_counted_by_key_and_fade() -> None:
    strikes = Strikes()
    assert [strikes.add("eve", now_s) for now_s in (0.0, 1.0, 2.0)] == [1, 2, 3]
    assert strikes.add("bob", 3.0) == 1
    assert strikes.add("eve", 2.0 + FADED_S) == 1
    strikes.forget(3.0 + 2 * FADED_S)
    assert not strikes._counts
