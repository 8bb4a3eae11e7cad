"""What a session finds out about the links to its boards."""

from __future__ import annotations

import pytest

from picoedge.jobs.boards import PING_BYTES, link_of

QUICK, STOPPED = [0.0021, 0.0020, 0.0024, 0.0022], [0.080, 0.081, 0.079, 0.090]


def test_a_link_is_what_it_adds_to_a_question_each_way() -> None:
    link = link_of(QUICK, [0.0121, 0.0131], own_s=0.0001)
    assert link.latency_s == pytest.approx(0.001)
    assert link.bytes_per_s == pytest.approx(PING_BYTES / 0.01)


def test_a_board_that_is_stopped_now_and_then_makes_no_link_longer() -> None:
    assert link_of(QUICK + STOPPED, [0.0121], 0.0001).latency_s == pytest.approx(0.001, rel=0.1)


def test_no_link_is_shorter_than_nothing() -> None:
    link = link_of([0.001], [0.0005], own_s=0.002)
    assert link.latency_s == 0
    assert link.bytes_per_s > 0
