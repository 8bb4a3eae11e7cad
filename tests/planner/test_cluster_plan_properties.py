"""Properties of any plan over many boards."""

from __future__ import annotations

import dataclasses
import itertools

from cluster_figures import board, cluster, load_of, weights_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from picoedge.errors import MemoryBudgetError
from picoedge.planner.cluster_plan import ClusterOptions, plan_cluster
from picoedge.planner.topology import LinkFacts, Topology

SMALL = load_of(layers=6, hidden=576, groups=3, shards=6, vocab=8000, n_ctx=512)
FREE = LinkFacts(0.0, 1e12)
speeds = st.sampled_from([1e9, 2e9, 4e9, 8e9])
links = st.builds(LinkFacts, st.floats(0, 2e-3), st.floats(1e7, 1e9))


@st.composite
def clusters(draw: st.DrawFn, least: float = 80) -> Topology:
    """One to five boards of at least so many MB."""
    count = draw(st.integers(1, 5))
    boards = [
        board(str(i), draw(speeds), draw(st.floats(least, 200)), message_s=draw(st.floats(0, 1e-3)))
        for i in range(count)
    ]
    return cluster(*boards, link=draw(links))


@settings(max_examples=40)
@given(clusters(), st.booleans())
def test_every_shard_is_held_once(boards: Topology, split_head: bool) -> None:
    plan = plan_cluster(SMALL, boards, ClusterOptions(split_head=split_head))
    assert plan.chosen.shares[0].board.name == boards.boards[boards.hub].name
    for one in (plan.chosen, *(p for p in plan.candidates if p)):
        parts = [share.part for share in one.shares]
        assert [i for part in parts for i in part.attention] == list(range(3))
        assert [i for part in parts for i in part.ffn] == list(range(6))
        assert [i for part in parts for i in part.head_shards] == list(range(50))
        assert split_head or len(parts[0].head_shards) == 50
        assert [part.owns_head for part in parts] == [True] + [False] * (len(parts) - 1)
        assert sum(share.weights_bytes for share in one.shares) == weights_bytes(SMALL)
    assert sorted([*[share.board.name for share in plan.chosen.shares], *plan.idle]) == sorted(
        b.name for b in boards.boards
    )


@settings(max_examples=40)
@given(clusters(least=62))
def test_no_candidate_beats_physics(boards: Topology) -> None:
    try:
        plan = plan_cluster(SMALL, boards)
    except MemoryBudgetError:
        return
    for one in (plan.chosen, *(p for p in plan.candidates if p)):
        together = sum(share.board.compute_bytes_per_s for share in one.shares)
        assert one.s_per_token > weights_bytes(SMALL) / together
        assert one.s_per_token >= max(one.disk_s, one.compute_s + one.comm_s) * 0.999
        hops = 2 * 6 if one.boards > 1 else 0
        assert one.comm_s >= hops * boards.link_between(0, 0).latency_s
        prompt = weights_bytes(SMALL) - SMALL.runs[-1].nbytes
        assert one.prefill_tok_s < 4 * together / prompt


@settings(max_examples=40)
@given(clusters(least=62), st.booleans())
def test_each_board_keeps_its_budget(boards: Topology, split_head: bool) -> None:
    try:
        plan = plan_cluster(SMALL, boards, ClusterOptions(split_head=split_head))
    except MemoryBudgetError:
        return
    for share in plan.chosen.shares:
        assert share.plan is not None
        assert share.memory_bytes == share.plan.total <= share.board.budget_bytes
        assert share.plan.window.streamed_bytes == share.streamed_bytes
    for one in plan.candidates:
        for share in one.shares if one else ():
            assert share.memory_bytes <= share.board.budget_bytes


@settings(max_examples=40)
@given(clusters())
def test_the_fewest_boards_that_are_as_quick_as_any(boards: Topology) -> None:
    plan = plan_cluster(SMALL, boards)
    times = [one.s_per_token for one in plan.candidates if one]
    assert plan.chosen.s_per_token <= 1.02 * min(times)
    fewer = plan.candidates[: plan.chosen.boards - 1]
    assert all(one is None or one.s_per_token > 1.02 * min(times) for one in fewer)


@settings(max_examples=30)
@given(clusters())
def test_free_links_make_another_board_no_loss(boards: Topology) -> None:
    free = [dataclasses.replace(one, message_s=0.0) for one in boards.boards]
    plan = plan_cluster(SMALL, cluster(*free, link=FREE))
    times = [one.s_per_token for one in plan.candidates if one]
    assert all(b <= a + 1e-4 for a, b in itertools.pairwise(times))


@settings(max_examples=30)
@given(clusters(least=62))
def test_a_head_that_may_be_dealt_is_no_loss(boards: Topology) -> None:
    try:
        kept = plan_cluster(SMALL, boards)
    except MemoryBudgetError:
        return
    dealt = plan_cluster(SMALL, boards, ClusterOptions(split_head=True))
    for one, other in zip(kept.candidates[:2], dealt.candidates[:2], strict=True):
        if one is not None:  # of the same boards
            assert other is not None
            assert other.members != one.members or other.s_per_token <= one.s_per_token * 1.0001
