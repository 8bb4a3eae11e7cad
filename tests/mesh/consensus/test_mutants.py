"""Each rule taken away: the simulator finds what goes wrong without it."""

from __future__ import annotations

import pytest
from consensus_histories import HISTORIES
from consensus_mutants import CAUGHT_BY, MUTANTS, fault_of, is_caught


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str) -> None:
    assert is_caught(name)
    assert fault_of(HISTORIES[CAUGHT_BY[name]], 0) == ""  # the rule is back
