"""Histories that break weaker designs, each by name: HISTORIES[name](seed) raises AssertionError.

Each was found by a simulator or by reading, and is caught by random seeds rarely or never.
"""

from __future__ import annotations

import consensus_histories_failures
import consensus_histories_states
import consensus_histories_votes

HISTORIES = {
    **consensus_histories_votes.HISTORIES,
    **consensus_histories_failures.HISTORIES,
    **consensus_histories_states.HISTORIES,
}
