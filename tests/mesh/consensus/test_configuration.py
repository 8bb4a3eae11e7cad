"""Quorums share a voter; epochs of generations are in order."""

from __future__ import annotations

from itertools import combinations

import pytest
from consensus_board import BEGINNING, NOBODY

from picoedge.mesh.consensus.configuration import BoardId, Epoch, RunGeneration, is_quorum


def subsets(keys: str) -> list[set[str]]:
    return [set(c) for n in range(len(keys) + 1) for c in combinations(keys, n)]


@pytest.mark.parametrize("n", range(1, 7))
def test_any_two_quorums_share_a_voter(n: int) -> None:
    keys = "abcdef"[:n]
    voters = tuple(BoardId(key, 1) for key in keys)
    quorums = [keys for keys in subsets(keys) if is_quorum(voters, keys)]
    assert all(a & b for a in quorums for b in quorums)
    for side in subsets(keys):  # of two sides that all voters are on, one can go on
        assert is_quorum(voters, side) != is_quorum(voters, set(keys) - side)


def test_a_voter_that_has_restarted_counts_by_its_key() -> None:
    voters = (BoardId("a", 1), BoardId("b", 1), BoardId("c", 1))
    assert is_quorum(voters, {"a", "c"})
    assert not is_quorum(voters, {"c", "x", "y"})


def test_a_generation_is_above_all_epochs_of_the_one_before() -> None:
    later, other = RunGeneration(1, NOBODY), RunGeneration(1, BoardId("b", 1))
    assert Epoch(BEGINNING, 900) < Epoch(later, 3) < Epoch(later, 4) < Epoch(other, 2)
    assert Epoch(later, 3).next == Epoch(later, 4)
