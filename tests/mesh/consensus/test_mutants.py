"""Each rule taken away: the simulator finds what goes wrong without it."""

from __future__ import annotations

import pytest
from consensus_histories import HISTORIES
from consensus_mutants import CAUGHT_BY, MUTANTS, fault_of, mutant


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str) -> None:
    history = HISTORIES[CAUGHT_BY[name]]
    assert fault_of(history, 0) == ""
    with mutant(name):
        assert any(fault_of(history, seed) for seed in range(3))
    assert fault_of(history, 0) == ""
