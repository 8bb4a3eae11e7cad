"""What a worker does under a configuration."""

from __future__ import annotations

from dataclasses import replace

import pytest
from consensus_board import BEGINNING
from consensus_scenes import configuration

from picoedge.mesh.consensus.configuration import Ballot, BoardId, ConfigurationId, Epoch, Snapshot
from picoedge.mesh.consensus.duty import Duty, Place, duty, may_catch_up, may_move

A, B, C = (BoardId(key, 1) for key in "abc")
OLD = configuration((A, B, C))
FAILED = configuration((A, B), epoch=Epoch(BEGINNING, 1), ballot=Ballot(1, 0, A), start=10)
PLANNED = replace(FAILED, ballot=Ballot(0, 1, A))
FROZEN = Epoch(BEGINNING, 1)


def state(step: int) -> Snapshot:
    return Snapshot(BEGINNING, step, ConfigurationId(OLD.epoch, OLD.ballot))


@pytest.mark.parametrize(
    ("me", "known", "place", "expected"),
    [
        (A, OLD, Place(state(9), OLD, None), Duty.RUN),
        (A, FAILED, Place(state(10), OLD, FROZEN), Duty.RUN),
        (A, FAILED, Place(state(9), OLD, FROZEN), Duty.FETCH),
        (A, FAILED, Place(state(8), OLD, FROZEN), Duty.LEARN),
        (A, FAILED, Place(state(11), OLD, FROZEN), Duty.LEARN),  # ahead: that step is redone
        (A, FAILED, Place(None, None, None), Duty.LEARN),
        (C, FAILED, Place(state(9), OLD, None), Duty.LEARN),
        (A, PLANNED, Place(state(9), OLD, None), Duty.FINISH),
        (C, PLANNED, Place(state(9), OLD, None), Duty.FINISH),  # it leaves, after that step
        (C, PLANNED, Place(state(10), OLD, None), Duty.LEARN),
        (C, PLANNED, Place(state(9), OLD, FROZEN), Duty.LEARN),
        (A, FAILED, Place(state(10), OLD, Epoch(BEGINNING, 2)), Duty.WAIT),
        (A, FAILED, Place(state(9), OLD, Epoch(BEGINNING, 2)), Duty.WAIT),
        (A, FAILED, Place(state(10), FAILED, Epoch(BEGINNING, 2)), Duty.RUN),  # which may not move
    ],
)
def test_duty(me: BoardId, known: object, place: Place, expected: Duty) -> None:
    assert duty(known, me, place) is expected  # type: ignore[arg-type]


def test_a_board_that_was_left_out_long_ago_does_not_wait_to_finish() -> None:
    later = replace(PLANNED, epoch=Epoch(BEGINNING, 5), start=40)
    assert duty(later, C, Place(state(9), OLD, None)) is Duty.LEARN


def test_a_generation_begins_from_its_checkpoint() -> None:
    known = replace(FAILED, restores=state(5), start=5)
    assert duty(known, A, Place(None, None, None, state(5))) is Duty.RESTORE
    assert duty(known, A, Place(state(9), OLD, None, state(5))) is Duty.RESTORE
    assert duty(known, A, Place(state(9), OLD, None, state(4))) is Duty.LEARN
    assert duty(known, A, Place(state(5), None, None)) is Duty.RUN


def test_a_freeze_stops_sums_of_earlier_configurations() -> None:
    assert may_move(OLD, Place(state(9), OLD, None))
    assert not may_move(OLD, Place(state(9), OLD, FROZEN))
    assert may_move(FAILED, Place(state(10), FAILED, FROZEN))
    assert not may_move(FAILED, Place(state(10), FAILED, Epoch(BEGINNING, 2)))
    assert not may_move(PLANNED, Place(state(10), OLD, None))  # the start: the next one runs


def test_a_sum_is_fetched_under_the_known_configuration_only() -> None:
    place = Place(state(9), OLD, FROZEN)
    assert may_catch_up(FAILED, A, place, FAILED.identity)
    assert not may_catch_up(FAILED, A, place, OLD.identity)
    assert not may_catch_up(FAILED, A, replace(place, frozen=Epoch(BEGINNING, 2)), FAILED.identity)
