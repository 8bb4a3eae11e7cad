"""Plans over boards that have slices loaded still, and over boards whose disks are full."""

from __future__ import annotations

import dataclasses

import pytest
from cluster_figures import LAN, board, cluster, load_of
from hypothesis import given, settings
from hypothesis import strategies as st

from picoedge.errors import StorageError
from picoedge.planner.cluster_plan import ClusterOptions, ClusterPlan, plan_cluster
from picoedge.planner.locality import DISK_SPARE_BYTES, KEEP_LOADED, loaded_slices
from picoedge.planner.memory import Counts
from picoedge.planner.topology import Topology
from picoedge.store.shards import HeldShards, Slice
from picoedge.units import MB

SMALL = load_of(layers=6, hidden=576, groups=3, shards=6, vocab=8000, n_ctx=512)
NOTHING = HeldShards()


def boards(*speeds: float, memory: float = 70.0) -> Topology:
    each = [board(str(i), speed, memory) for i, speed in enumerate(speeds)]
    return cluster(*each, link=LAN)


def loaded_by(plan: ClusterPlan, hub: bool) -> dict[int, Slice]:
    pairs = zip(plan.chosen.members, plan.chosen.shares, strict=True)
    return {i: share.part for i, share in pairs if hub or i}


def parts_of(plan: ClusterPlan) -> dict[str, Slice]:
    return {share.board.name: share.part for share in plan.chosen.shares}


THREE = ClusterOptions(boards=3)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.8, 1.25), min_size=3, max_size=3), st.booleans())
def test_slices_that_are_loaded_are_taken_where_that_costs_little(
    noise: list[float], hub: bool
) -> None:
    calm = boards(1e9, 1e9, 1e9)
    first = plan_cluster(SMALL, calm, THREE)
    again = boards(*(1e9 * factor for factor in noise))
    cold = plan_cluster(SMALL, again, THREE)
    warm = plan_cluster(SMALL, again, THREE, loaded=loaded_by(first, hub))
    if warm.chosen.s_per_token > cold.chosen.s_per_token:
        assert parts_of(warm) == parts_of(first)
        assert warm.chosen.s_per_token <= KEEP_LOADED * cold.chosen.s_per_token
        assert "loaded still" in warm.why
    else:
        assert parts_of(warm) in (parts_of(first), parts_of(cold))


def test_slices_of_two_plans_are_no_plan() -> None:
    counts = Counts(4, 8, 0)
    half, third = Slice(range(2, 4), range(4, 8)), Slice(range(1, 3), range(3, 6))
    assert list(loaded_slices(counts, {1: half, 2: third}, 0)) == [
        ([0, 1], [Slice(range(2), range(4), range(0)), half])
    ]
    assert list(loaded_slices(counts, {2: third}, 0)) == []
    assert list(loaded_slices(counts, {0: Slice(range(1), range(3)), 1: half}, 0)) == []


def test_boards_that_all_claim_the_same_slices_cost_no_time() -> None:
    counts = Counts(64, 64, 0)
    parts = [Slice(range(i, i + 1), range(i, i + 1)) for i in range(1, 63)]
    loaded = dict(enumerate(parts * 20, 1))
    assert list(loaded_slices(counts, loaded, 0)) == []


def with_room(plan: Topology, index: int, free: int, files: int = 1 << 40) -> Topology:
    each = list(plan.boards)
    each[index] = dataclasses.replace(each[index], disk_free_bytes=free, disk_free_files=files)
    return dataclasses.replace(plan, boards=tuple(each))


@pytest.mark.parametrize("files", [5, 1 << 40])
def test_a_board_without_room_for_its_shards_is_left_out_and_the_plan_says_so(files: int) -> None:
    calm = boards(1e8, 1e8, 1e8)
    held = {1: NOTHING, 2: NOTHING}
    free = 1 << 40 if files == 5 else 6 * MB
    plan = plan_cluster(SMALL, with_room(calm, 2, free, files), held=held)
    assert "2" not in parts_of(plan)
    needed = "files needed, 5 free" if files == 5 else "needed, 6 MB free"
    assert needed in plan.why
    assert "2 has no room for its part" in plan.why


def test_a_full_board_computes_what_it_holds() -> None:
    calm = boards(1e8, 1e8, 1e8)
    first = plan_cluster(SMALL, calm, THREE)
    shards = {
        i: HeldShards(*map(frozenset, (part.attention, part.ffn, part.head_shards)))
        for i, part in loaded_by(first, hub=False).items()
    }
    plan = plan_cluster(SMALL, with_room(calm, 2, 0), THREE, held=shards)
    assert parts_of(plan) == parts_of(first)
    assert "no room" not in plan.why


def test_where_no_plan_is_left_the_figures_are_told() -> None:
    full = boards(1e8, 1e8)
    full = with_room(full, 1, DISK_SPARE_BYTES)
    options = ClusterOptions(boards=2)
    with pytest.raises(StorageError, match=r"no room .*1: [0-9.]+ MB needed, 16 MB free"):
        plan_cluster(SMALL, full, options, held={1: NOTHING})
    split = ClusterOptions(split=(1, 1))
    with pytest.raises(StorageError, match="no room"):
        plan_cluster(SMALL, full, split, held={1: NOTHING})
