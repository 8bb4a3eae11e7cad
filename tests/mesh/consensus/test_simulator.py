"""Random histories in which any board may fail at any moment: none ends in two, none in a stall."""

from __future__ import annotations

import pytest
from consensus_seeds import history, make
from consensus_simulator import Simulator

CHUNK = 10


@pytest.mark.parametrize("first", range(0, 150, CHUNK))
def test_random_histories(first: int) -> None:
    for seed in range(first, first + CHUNK):
        history(seed)


def test_an_undisturbed_run_counts_its_boards_in() -> None:
    sim = Simulator(1, 6, 3, 2)
    sim.run(60)
    newest = sim.newest()
    assert newest is not None
    assert {member.key for member in newest.members} == set("abcd")
    assert len(newest.voters) == 5  # a witness makes their number odd
    assert sim.best()[1] > 50


def test_a_seed_is_a_history() -> None:
    counts = [history(7).counts for _ in range(2)]
    assert counts[0] == counts[1]
    assert {make(seed).witnesses == set() for seed in range(20)} == {True, False}
