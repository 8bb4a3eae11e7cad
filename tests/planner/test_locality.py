"""Plans over boards that have parts of the model already: shards stay in place where they may."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import pytest
from cluster_figures import LAN, SLOW, board, cluster, load_of
from hypothesis import given, settings
from hypothesis import strategies as st

from picoedge.planner.assignment import all_partitions, apportion_held
from picoedge.planner.cluster_plan import ClusterOptions, ClusterPlan, plan_cluster
from picoedge.planner.locality import KEEP
from picoedge.planner.memory import Load
from picoedge.planner.topology import BoardFacts, LinkFacts, Topology
from picoedge.store.shards import HeldShards, Slice

TINY_LLAMA = load_of()
SMALL = load_of(layers=6, hidden=576, groups=3, shards=6, vocab=8000, n_ctx=512)
MANY_GROUPS = load_of(layers=4, hidden=1024, groups=16, shards=12, vocab=4000, n_ctx=512)
NOTHING = HeldShards()
NOISE = 0.03  # of a measure, either way

speeds = st.sampled_from([1e9, 2e9, 4e9])
noise = st.floats(1 - NOISE, 1 + NOISE)


def having(plan: ClusterPlan, boards: Topology) -> dict[int, HeldShards]:
    """Shards on the disks after a first session by this plan; the hub has all."""
    held = {i: NOTHING for i in range(len(boards.boards)) if i != boards.hub}
    for member, share in zip(plan.chosen.members, plan.chosen.shares, strict=True):
        if member != boards.hub:
            held[member] = held_in(share.part)
    return held


def held_in(part: Slice) -> HeldShards:
    return HeldShards(*map(frozenset, (part.attention, part.ffn, part.head_shards)))


def missing_shards(plan: ClusterPlan, held: Mapping[int, HeldShards]) -> int:
    """Shards that have to be pulled for it."""
    return sum(
        len(getattr(held_in(share.part), kind) - getattr(held[member], kind))
        for member, share in zip(plan.chosen.members, plan.chosen.shares, strict=True)
        for kind in ("attention", "ffn", "head")
        if member in held
    )


def ffn_of(plan: ClusterPlan) -> dict[str, range]:
    return {share.board.name: share.part.ffn for share in plan.chosen.shares}


def faster(one: BoardFacts, factor: float) -> BoardFacts:
    return dataclasses.replace(one, compute_bytes_per_s=factor * one.compute_bytes_per_s)


@st.composite
def clusters(draw: st.DrawFn) -> Topology:
    """Two to five boards, of which many are equal."""
    count = draw(st.integers(2, 5))
    memory = draw(st.sampled_from([70.0, 90.0, 300.0]))
    boards = [board(str(i), draw(speeds), memory) for i in range(count)]
    return cluster(*boards, link=draw(st.sampled_from([LAN, LinkFacts(3e-4, 1e8)])))


@st.composite
def noisy(draw: st.DrawFn, boards: Topology) -> Topology:
    """The same boards and links, measured another day."""
    again = tuple(
        dataclasses.replace(
            faster(one, draw(noise)),
            disk_bytes_per_s=one.disk_bytes_per_s * draw(noise),
            message_s=one.message_s * draw(noise),
        )
        for one in boards.boards
    )
    assert boards.link is not None
    link = LinkFacts(boards.link.latency_s * draw(noise), boards.link.bytes_per_s * draw(noise))
    return dataclasses.replace(boards, boards=again, link=link)


# -- properties of any plan ----------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(clusters(), st.sampled_from([SMALL, MANY_GROUPS]), st.data())
def test_nothing_is_pulled_again_because_measures_moved(
    boards: Topology, load: Load, data: st.DataObject
) -> None:
    wishes = ClusterOptions(
        boards=data.draw(st.sampled_from([None, 2])), split_head=data.draw(st.booleans())
    )
    held = having(plan_cluster(load, boards, wishes), boards)
    again = plan_cluster(load, data.draw(noisy(boards)), wishes, held=held)
    assert missing_shards(again, held) == 0


@st.composite
def some_of(draw: st.DrawFn, load: Load) -> HeldShards:
    """Whatever sessions may have left behind."""
    kinds = (load.part.attention, load.part.ffn, load.part.head_shards)
    return HeldShards(*(draw(st.frozensets(st.sampled_from(list(shards)))) for shards in kinds))


@settings(max_examples=20, deadline=None)
@given(clusters(), st.data())
def test_with_any_shards_held_the_plan_is_whole_and_hardly_slower(
    boards: Topology, data: st.DataObject
) -> None:
    others = [i for i in range(len(boards.boards)) if i != boards.hub]
    held = {i: data.draw(some_of(SMALL)) for i in data.draw(st.sets(st.sampled_from(others)))}
    wishes = ClusterOptions(split_head=data.draw(st.booleans()))
    free, plan = (plan_cluster(SMALL, boards, wishes, held=each) for each in (None, held))
    assert plan.chosen.s_per_token <= KEEP * free.chosen.s_per_token
    assert missing_shards(plan, held) <= missing_shards(free, held)
    parts = [share.part for share in plan.chosen.shares]
    assert plan.chosen.members[0] == boards.hub
    assert [i for part in parts for i in part.attention] == list(range(3))
    assert [i for part in parts for i in part.ffn] == list(range(6))
    assert [i for part in parts for i in part.head_shards] == list(SMALL.part.head_shards)
    asked = plan_cluster(SMALL, boards, ClusterOptions(boards=2), held=held).chosen.boards
    assert asked == plan_cluster(SMALL, boards, ClusterOptions(boards=2)).chosen.boards


@settings(max_examples=15, deadline=None)
@given(clusters())
def test_where_all_have_all_or_a_split_is_asked_for_disks_change_nothing(boards: Topology) -> None:
    everything = held_in(SMALL.part)
    free = plan_cluster(SMALL, boards)
    assert plan_cluster(SMALL, boards, held=dict.fromkeys(range(1, 2), everything)) == free
    split = ClusterOptions(split=(1, 2))
    none = dict.fromkeys(range(1, len(boards.boards)), NOTHING)
    assert plan_cluster(SMALL, boards, split, held=none) == plan_cluster(SMALL, boards, split)


def bottleneck(sizes: Sequence[int], weights: Sequence[float]) -> float:
    return max(size / weight for size, weight in zip(sizes, weights, strict=True))


@given(
    st.integers(0, 7),
    st.lists(
        st.tuples(st.frozensets(st.integers(0, 6)), st.sampled_from([0.5, 1.0, 2.0])),
        min_size=1,
        max_size=4,
    ),
)
def test_no_other_runs_of_what_boards_have_are_done_earlier(
    count: int, boards: list[tuple[frozenset[int], float]]
) -> None:
    held, weights = [has for has, _ in boards], [weight for _, weight in boards]

    def are_held(sizes: Sequence[int]) -> bool:
        begin, right = 0, True
        for size, has in zip(sizes, held, strict=True):
            right = right and has.issuperset(range(begin, begin + size))
            begin += size
        return right

    found = apportion_held(count, held, lambda board, shards: shards / weights[board])
    able = [sizes for sizes in all_partitions(count, len(boards)) if are_held(sizes)]
    assert (found is None) == (not able)
    if found is not None:
        assert are_held(found)
        assert sum(found) == count
        assert bottleneck(found, weights) == min(bottleneck(sizes, weights) for sizes in able)


def test_a_board_takes_no_run_that_it_cannot() -> None:
    def cost(board: int, shards: int) -> float:
        return math.inf if shards > 3 - board else float(shards)

    assert apportion_held(5, [range(5), range(5)], cost) == [3, 2]
    assert apportion_held(6, [range(6), range(6)], cost) is None


# -- tables --------------------------------------------------------------------------------------

PAIR = cluster(board("a"), board("b"))
THREE = cluster(*(board(name, 2e9) for name in "abc"))


def test_a_first_session_is_dealt_as_if_disks_counted_for_nothing() -> None:
    held = {1: NOTHING, 2: NOTHING}
    plan, free = plan_cluster(TINY_LLAMA, THREE, held=held), plan_cluster(TINY_LLAMA, THREE)
    assert plan.chosen == free.chosen
    assert plan.why == free.why


@pytest.mark.parametrize("factor", [0.88, 0.95, 1.05, 1.12])
def test_a_board_that_is_a_little_quicker_or_slower_keeps_its_share(factor: float) -> None:
    load = load_of(shards=88)
    held = having(plan_cluster(load, PAIR), PAIR)
    again = cluster(faster(PAIR.boards[0], factor), PAIR.boards[1])
    assert missing_shards(plan_cluster(load, again, held=held), held) == 0
    plans = [plan_cluster(load, each, held=held) for each in (PAIR, again)]
    assert ffn_of(plans[0]) == {"a": range(44), "b": range(44, 88)}
    assert plans[0].why == plan_cluster(load, PAIR).why


def test_a_plan_of_held_shards_says_what_they_cost() -> None:
    load = load_of(shards=88)
    held = having(plan_cluster(load, PAIR), PAIR)
    plan = plan_cluster(load, cluster(PAIR.boards[0], faster(PAIR.boards[1], 1.15)), held=held)
    assert ffn_of(plan)["b"] == range(44, 88)
    assert plan.why.endswith(
        "; that is on the boards' disks: the quickest shares, of 2 boards, "
        "would save 7.3 ms and have 55.7 MB pulled"
    )


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_board_of_another_speed_gets_another_share(factor: float) -> None:
    held = having(plan_cluster(TINY_LLAMA, THREE), THREE)
    again = cluster(THREE.boards[0], faster(THREE.boards[1], factor), THREE.boards[2])
    plan, free = plan_cluster(TINY_LLAMA, again, held=held), plan_cluster(TINY_LLAMA, again)
    before, after = (ffn_of(each)["b"] for each in (plan_cluster(TINY_LLAMA, THREE), plan))
    assert abs(len(after) - len(before)) >= 2
    assert plan.chosen.s_per_token <= KEEP * free.chosen.s_per_token


def test_equal_boards_keep_their_places() -> None:
    """Which of two is the quicker is a matter of chance; the slice of each must not be."""
    held = having(plan_cluster(TINY_LLAMA, THREE), THREE)
    for quicker in (1, 2):
        boards = list(THREE.boards)
        boards[quicker] = faster(boards[quicker], 1.01)
        plan = plan_cluster(TINY_LLAMA, cluster(*boards), held=held)
        assert missing_shards(plan, held) == 0
        assert plan.chosen.boards == 3


def test_of_boards_about_as_quick_those_that_have_it_are_asked() -> None:
    boards = cluster(*(board(name) for name in "abcd"))
    first = plan_cluster(TINY_LLAMA, boards)
    assert list(ffn_of(first)) == ["a", "b"]
    held = having(first, boards)
    again = cluster(*boards.boards[:3], faster(boards.boards[3], 1.15))
    assert list(ffn_of(plan_cluster(TINY_LLAMA, again))) == ["a", "d"]
    assert list(ffn_of(plan_cluster(TINY_LLAMA, again, held=held))) == ["a", "b"]


def test_a_newcomer_that_is_worth_it_is_put_where_least_is_pulled() -> None:
    slow = cluster(*(board(name, 5e8) for name in "abc"))
    two = cluster(*slow.boards[:2])
    held = {**having(plan_cluster(TINY_LLAMA, two), two), 2: NOTHING}
    plan = plan_cluster(TINY_LLAMA, slow, held=held)
    assert list(ffn_of(plan)) == ["a", "c", "b"]
    assert set(ffn_of(plan)["b"]) <= held[1].ffn
    assert plan.chosen.s_per_token <= 1.02 * plan_cluster(TINY_LLAMA, slow).chosen.s_per_token


def test_a_newcomer_that_adds_little_is_told_of() -> None:
    boards = cluster(*(board(name, 5e9) for name in "abc"))
    two = cluster(*boards.boards[:2])
    held = {**having(plan_cluster(TINY_LLAMA, two), two), 2: NOTHING}
    assert plan_cluster(TINY_LLAMA, boards).chosen.boards == 3
    plan = plan_cluster(TINY_LLAMA, boards, held=held)
    assert list(ffn_of(plan)) == ["a", "b"]
    assert "the quickest shares, of 3 boards, would save" in plan.why
    asked = plan_cluster(TINY_LLAMA, boards, ClusterOptions(boards=3), held=held)
    assert asked.chosen.boards == 3


def test_a_board_that_has_all_is_put_where_the_others_keep_theirs() -> None:
    held = having(plan_cluster(TINY_LLAMA, THREE), THREE)
    first, second = plan_cluster(TINY_LLAMA, THREE), dict(held)
    del second[1]  # it has got the rest meanwhile
    plan = plan_cluster(TINY_LLAMA, THREE, held=second)
    assert ffn_of(plan) == ffn_of(first)
    middle = {1: held[2], 2: held[1]}  # whose runs are in another order than boards are listed
    swapped = plan_cluster(TINY_LLAMA, THREE, held=middle)
    assert list(ffn_of(swapped)) == ["a", "c", "b"]
    assert missing_shards(swapped, middle) == 0


def test_over_a_slow_link_what_is_held_is_no_reason() -> None:
    held = {1: HeldShards(frozenset({2, 3}), frozenset(range(11, 22)))}
    far = cluster(board("a"), board("b"), link=SLOW)
    assert list(ffn_of(plan_cluster(TINY_LLAMA, far, held=held))) == ["a"]
