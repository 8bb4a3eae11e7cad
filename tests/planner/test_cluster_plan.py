"""Plans over many boards: how many, the share of each, and the sentence that says why."""

from __future__ import annotations

import dataclasses
import json
from typing import Literal

import pytest
from cluster_figures import LAN, MB, SLOW, board, cluster, load_of
from hypothesis import given
from hypothesis import strategies as st

from picoedge.errors import MemoryBudgetError, UsageError
from picoedge.planner.cluster_plan import (
    TABLE_HEADER,
    ClusterOptions,
    ClusterPlan,
    plan_cluster,
    plan_table,
)
from picoedge.planner.memory import Budget, Load, Reading, plan_memory
from picoedge.planner.topology import BoardFacts, LinkFacts, Topology
from picoedge.store.window.plan import Rates

TINY_LLAMA = load_of()


def names(plan: ClusterPlan) -> list[str]:
    return [share.board.name for share in plan.chosen.shares]


def ffn_shards(plan: ClusterPlan) -> list[int]:
    return [len(share.part.ffn) for share in plan.chosen.shares]


@given(st.sampled_from([2000.0, 450.0, 300.0]))
def test_one_board_is_planned_as_one_board_plans(memory: float) -> None:
    hub = board("a", memory=memory)
    share = plan_cluster(TINY_LLAMA, cluster(hub)).chosen.shares[0]
    rates = Rates(hub.disk_bytes_per_s, hub.compute_bytes_per_s, hub.unit_s)
    own = plan_memory(
        TINY_LLAMA, Budget(hub.budget_bytes, hub.fixed_bytes), [Reading("direct", rates)]
    )
    assert share.plan == own


def test_two_equal_boards_take_half_each() -> None:
    plan = plan_cluster(TINY_LLAMA, cluster(board("a"), board("b")))
    assert ffn_shards(plan) == [11, 11]
    assert [len(share.part.attention) for share in plan.chosen.shares] == [2, 2]
    alone = plan.candidates[0]
    assert alone is not None
    assert 0.5 < plan.chosen.s_per_token / alone.s_per_token < 0.8
    assert plan.chosen.prefill_tok_s > 1.5 * alone.prefill_tok_s


def test_boards_are_chosen_by_exact_plans_of_what_is_streamed() -> None:
    boards = cluster(*(board(str(i), 8e8, 150 + i) for i in range(6)), link=SLOW)
    plan = plan_cluster(TINY_LLAMA, boards)
    for count in range(1, 7):
        asked = plan_cluster(TINY_LLAMA, boards, ClusterOptions(boards=count)).chosen
        assert plan.chosen.s_per_token <= 1.02 * asked.s_per_token


def test_a_board_of_half_the_speed_takes_half_as_much() -> None:
    plan = plan_cluster(TINY_LLAMA, cluster(board("a", 2e9), board("b", 1e9)))
    assert ffn_shards(plan) == [15, 7]
    equal = plan_cluster(
        TINY_LLAMA, cluster(board("a", 2e9), board("b", 1e9)), ClusterOptions(split=(1, 1))
    )
    assert equal.chosen.s_per_token > 1.2 * plan.chosen.s_per_token


def head_shards(plan: ClusterPlan) -> list[int]:
    return [len(share.part.head_shards) for share in plan.chosen.shares]


def test_the_head_stays_at_the_hub_unless_it_may_go() -> None:
    boards = cluster(board("a"), board("b", 4e9))
    assert head_shards(plan_cluster(TINY_LLAMA, boards, ClusterOptions(split=(1, 1)))) == [50, 0]
    both = plan_cluster(TINY_LLAMA, boards, ClusterOptions(split=(1, 1), split_head=True))
    assert head_shards(both) == [25, 25]
    dealt = plan_cluster(TINY_LLAMA, boards, ClusterOptions(boards=2, split_head=True))
    assert 30 < head_shards(dealt)[0] < 50
    assert dealt.chosen.s_per_token < plan_cluster(TINY_LLAMA, boards).chosen.s_per_token


def test_over_a_slow_link_the_head_is_not_dealt() -> None:
    boards = cluster(board("a"), board("b"), link=SLOW)
    plan = plan_cluster(TINY_LLAMA, boards, ClusterOptions(boards=2, split_head=True))
    assert head_shards(plan) == [50, 0]


def test_a_hub_that_cannot_hold_the_head_has_others_hold_it() -> None:
    wide = load_of(layers=6, hidden=640, groups=1, shards=8, vocab=262144, n_ctx=512)
    boards = cluster(board("a", memory=80), *(board(name, memory=150) for name in "bc"))
    kept = plan_cluster(wide, boards)
    dealt = plan_cluster(wide, boards, ClusterOptions(split_head=True))
    assert kept.chosen.clock == "disk"
    assert dealt.chosen.disk_s == 0
    assert dealt.chosen.s_per_token < kept.chosen.s_per_token / 5


def test_a_hub_that_holds_no_shards_takes_the_chunks_it_has_room_for() -> None:
    wide = load_of(layers=6, hidden=640, groups=1, shards=8, vocab=262144, n_ctx=512)
    boards = cluster(board("a", memory=62), board("b"))
    plan = plan_cluster(wide, boards, ClusterOptions(split=(0, 1), split_head=True))
    hub = plan.chosen.shares[0].plan
    assert hub is not None
    assert hub.total <= hub.budget.total
    assert 0 < hub.batch < 256


def test_over_a_slow_link_one_board_is_quicker() -> None:
    plan = plan_cluster(TINY_LLAMA, cluster(board("a"), board("b"), link=SLOW))
    assert names(plan) == ["a"]
    assert plan.idle == ("b",)
    assert plan.chosen.comm_s == 0
    assert "a second would add" in plan.why


def test_slow_boards_share_even_over_a_slow_link() -> None:
    slow = [board(str(i), 8e8) for i in range(8)]
    plan = plan_cluster(TINY_LLAMA, cluster(*slow, link=SLOW))
    assert 1 < plan.chosen.boards < 8
    times = [one.s_per_token if one else 0.0 for one in plan.candidates]
    assert times[7] > min(times)


def test_memory_is_pooled() -> None:
    plan = plan_cluster(TINY_LLAMA, cluster(board("a", memory=450), board("b", memory=450)))
    alone = plan.candidates[0]
    assert alone is not None
    assert alone.clock == "disk"
    assert plan.chosen.disk_s == 0
    assert alone.s_per_token > 20 * plan.chosen.s_per_token
    assert "read for it" in plan.why


def test_shards_that_one_board_has_no_room_for_go_to_the_others() -> None:
    equal = plan_cluster(TINY_LLAMA, cluster(board("a"), board("b")), ClusterOptions(boards=2))
    tight = plan_cluster(
        TINY_LLAMA, cluster(board("a"), board("b", memory=250)), ClusterOptions(boards=2)
    )
    assert ffn_shards(tight)[1] < ffn_shards(equal)[1]
    assert tight.chosen.disk_s == 0
    assert tight.chosen.clock != "disk"


def test_a_hub_with_little_memory_has_the_others_compute() -> None:
    plan = plan_cluster(TINY_LLAMA, cluster(board("a", memory=100), board("b"), board("c")))
    assert plan.candidates[0] is None
    assert names(plan)[0] == "a"
    assert not plan.chosen.shares[0].part.ffn
    assert plan.chosen.disk_s == 0


@pytest.mark.parametrize("memory", [0, 59, 61])
def test_a_board_without_memory_takes_nothing(memory: float) -> None:
    boards = cluster(board("a"), board("b", memory=memory), board("c"))
    plan = plan_cluster(TINY_LLAMA, boards)
    assert plan.idle == ("b",)
    assert names(plan) == ["a", "c"]
    assert "a third would take nothing" in plan.why


def test_more_boards_than_key_value_heads() -> None:
    slow = [board(str(i), 2e8) for i in range(6)]
    plan = plan_cluster(TINY_LLAMA, cluster(*slow), ClusterOptions(boards=6))
    assert [len(share.part.attention) for share in plan.chosen.shares] == [1, 1, 1, 1, 0, 0]
    assert all(ffn_shards(plan))


def test_the_quickest_board_is_asked_first() -> None:
    boards = cluster(board("hub", 1e9), board("slow", 1e9), board("quick", 4e9))
    plan = plan_cluster(TINY_LLAMA, boards, ClusterOptions(boards=2))
    assert names(plan) == ["hub", "quick"]


def test_a_board_behind_a_slow_link_is_asked_last() -> None:
    far = Topology((board("hub"), board("far"), board("near")), {(0, 1): SLOW, (1, 2): SLOW}, LAN)
    assert names(plan_cluster(TINY_LLAMA, far)) == ["hub", "near"]


def test_the_hub_may_be_any_board() -> None:
    boards = Topology((board("a"), board("b")), {}, LAN, hub=1)
    assert names(plan_cluster(TINY_LLAMA, boards)) == ["b", "a"]
    split = plan_cluster(TINY_LLAMA, boards, ClusterOptions(split=(21, 1)))
    assert ffn_shards(split) == [21, 1]


def test_boards_that_cannot_reach_each_other_add_at_the_hub() -> None:
    three = Topology(tuple(board(str(i), 1e9) for i in range(3)), {}, LAN)
    apart = dataclasses.replace(three, unlinked=frozenset([(1, 2)]))
    plans = [
        plan_cluster(TINY_LLAMA, each, ClusterOptions(boards=3, allreduce="exchange"))
        for each in (three, apart)
    ]
    assert [plan.chosen.allreduce for plan in plans] == ["exchange", "star"]
    assert plans[1].chosen.boards == 3


@pytest.mark.parametrize("way", ["star", "exchange"])
def test_the_way_of_adding_can_be_asked_for(way: Literal["star", "exchange"]) -> None:
    boards = cluster(*(board(str(i), 1e9) for i in range(3)))
    free, asked = (
        plan_cluster(TINY_LLAMA, boards, ClusterOptions(boards=3, allreduce=one))
        for one in (None, way)
    )
    assert asked.chosen.allreduce == way
    assert free.chosen.s_per_token <= asked.chosen.s_per_token


def test_where_workers_are_far_apart_the_star_wins() -> None:
    links = {(0, 1): LAN, (0, 2): LAN, (1, 2): LinkFacts(5e-3, 1e7)}
    apart = Topology(tuple(board(str(i), 1e9) for i in range(3)), links)
    assert plan_cluster(TINY_LLAMA, apart, ClusterOptions(boards=3)).chosen.allreduce == "star"


def test_a_split_is_followed() -> None:
    boards = cluster(board("a"), board("b"), board("c"))
    plan = plan_cluster(TINY_LLAMA, boards, ClusterOptions(split=(3, 0, 1)))
    assert names(plan) == ["a", "c"]
    assert ffn_shards(plan) == [17, 5]
    assert plan.why.startswith("as asked, 2 boards: ")


@pytest.mark.parametrize(
    "wishes",
    [
        ClusterOptions(boards=0),
        ClusterOptions(boards=3),
        ClusterOptions(boards=-1),
        ClusterOptions(split=(1, 1, 1)),
    ],
)
def test_wishes_beyond_the_cluster_are_refused(wishes: ClusterOptions) -> None:
    with pytest.raises(UsageError, match="2 boards"):
        plan_cluster(TINY_LLAMA, cluster(board("a"), board("b")), wishes)


def too_small(load: Load, boards: list[BoardFacts], wishes: ClusterOptions | None = None) -> str:
    with pytest.raises(MemoryBudgetError) as caught:
        plan_cluster(load, cluster(*boards), wishes)
    assert "--memory" in caught.value.hint
    return caught.value.message


def test_a_model_that_fits_nowhere_is_refused_with_the_figures() -> None:
    said = too_small(TINY_LLAMA, [board("desk", memory=70), board("shelf", memory=0)])
    for figure in ("weights 555 MB", "2048 tokens 44.5 MB", "desk 10 MB of 70 MB", "shelf 0 B of"):
        assert figure in said


def test_where_the_head_may_be_dealt_the_hub_needs_no_more_than_buffers() -> None:
    boards = [board("desk", memory=61), board("shelf", memory=0)]
    assert "the hub's head at least" in too_small(TINY_LLAMA, boards)
    assert "the hub's buffers at least" in too_small(
        TINY_LLAMA, boards, ClusterOptions(split_head=True)
    )


def test_too_long_a_context_is_refused() -> None:
    long = load_of(n_ctx=8192)
    said = too_small(long, [board(str(i), memory=90) for i in range(4)])
    assert "8192 tokens" in said


def test_a_split_that_does_not_fit_is_refused() -> None:
    boards = [board("a"), board("b", memory=62)]
    assert plan_cluster(TINY_LLAMA, cluster(*boards)).chosen
    too_small(TINY_LLAMA, boards, ClusterOptions(split=(1, 9)))


def test_of_many_boards_a_refusal_names_a_few() -> None:
    said = too_small(TINY_LLAMA, [board(f"b{i}", memory=61) for i in range(12)])
    assert "b7" in said
    assert "b8" not in said
    assert "and 4 more boards" in said


def test_the_reason_is_one_sentence() -> None:
    plan = plan_cluster(TINY_LLAMA, cluster(*(board(str(i)) for i in range(3))))
    assert plan.why == (
        "2 boards: 52.5 ms a token, 1: 74.1 ms a token; "
        "a third would add 9.57 ms of sums and save 7.3 ms of computing"
    )


def test_a_board_alone_is_compared_with_nothing() -> None:
    assert plan_cluster(TINY_LLAMA, cluster(board("a"))).why == "1 board: 74.1 ms a token"


def test_each_board_has_a_row() -> None:
    plan = plan_cluster(TINY_LLAMA, cluster(board("a", memory=100), board("b", memory=450)))
    rows = plan_table(plan.chosen)
    assert [row[0] for row in rows] == ["a", "b"]
    assert all(len(row) == len(TABLE_HEADER) for row in rows)
    assert rows[1][1] == "heads 0-3"
    assert [row[3] for row in rows] == ["shards 0-49", "-"]
    assert rows[1][7].endswith(" of 450 MB")


def test_a_plan_is_plain_json() -> None:
    plan = plan_cluster(TINY_LLAMA, cluster(board("a", memory=65), board("b"), board("c")))
    values = json.loads(json.dumps(plan.to_json()))
    assert values["chosen"]["boards"][0]["head"]
    assert values["chosen"]["boards"][0]["vocabulary"] == [0, 50]
    assert values["predictions"][0] is None
    assert values["why"] == plan.why
    budgets = [one["budget_bytes"] for one in values["chosen"]["boards"]]
    assert budgets[0] == 65 * MB
