"""Named histories that break weaker designs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from consensus_histories import HISTORIES


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_history(history: Callable[[int], None], seed: int) -> None:
    history(seed)
