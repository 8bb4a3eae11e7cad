"""The default context of a plan over boards."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_figures import board, cluster

from picoedge.cluster.arrangement import plan_over
from picoedge.engine.options import OpenOptions
from picoedge.errors import MemoryBudgetError
from picoedge.planner.cluster_plan import ClusterOptions
from picoedge.store.pack.reader import Pack


def context(pack: Path, memory: float, *, asked: bool) -> int:
    """Of the plan over three boards of so many MB."""
    boards = cluster(*(board(name, memory=memory) for name in "abc"))
    options = OpenOptions(n_ctx=2048, is_default_context=not asked, cluster=ClusterOptions())
    return plan_over(boards, Pack.open(pack), options, None, None).load.n_ctx


def test_a_default_context_is_as_large_as_the_boards_have_room_for(smollm2_pack: Path) -> None:
    contexts = [context(smollm2_pack, memory, asked=False) for memory in (70, 74, 2000)]
    assert contexts[0] == 512
    assert contexts[1] == 1024
    assert contexts[-1] == 2048


def test_a_context_that_was_asked_for_is_kept_or_refused(smollm2_pack: Path) -> None:
    assert context(smollm2_pack, 2000, asked=True) == 2048
    with pytest.raises(MemoryBudgetError, match="context of 2048 tokens"):
        context(smollm2_pack, 70, asked=True)


def test_a_model_too_large_for_the_smallest_context_is_refused(smollm2_pack: Path) -> None:
    with pytest.raises(MemoryBudgetError, match="context of 512 tokens"):
        context(smollm2_pack, 61, asked=False)
