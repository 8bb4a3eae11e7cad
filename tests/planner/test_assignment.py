"""Shares where memory is short: no dealing is quicker, and none is promised that cannot be held."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from cluster_figures import MB, board, load_of, weights_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import write_tiny_model

from picoedge.engine.fit import load_of as load_of_pack
from picoedge.engine.options import OpenOptions
from picoedge.planner.assignment import (
    Assigner,
    RankCounts,
    all_on_hub,
    all_partitions,
    slices_of,
)
from picoedge.planner.memory import (
    Counts,
    Load,
    MemoryNeeds,
    counts_of,
    plan_slice,
    slice_load,
)
from picoedge.planner.topology import BoardFacts
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import Slice
from picoedge.store.sources.source import open_source

loads = st.builds(
    lambda groups, shards: load_of(4, 512, groups, shards, vocab=4000, n_ctx=512),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 7),
)
# Speed, memory beside the interpreter as a share of the weights, and bytes a second of the disk.
abilities = st.tuples(
    st.sampled_from([5e8, 1e9, 2e9]), st.floats(0.0, 1.4), st.sampled_from([1e7, 1e8, 1e9])
)
sync = st.sampled_from([0.0, 1e-3, 1e-2])


def boards_of(load: Load, able: list[tuple[float, float, float]]) -> list[BoardFacts]:
    whole = weights_bytes(load) / MB
    return [
        board(str(i), speed, 62 + share * whole, disk_bytes_per_s=disk)
        for i, (speed, share, disk) in enumerate(able)
    ]


@settings(max_examples=60)
@given(loads, st.lists(abilities, min_size=1, max_size=3), sync)
def test_no_other_shares_are_quicker(
    load: Load, able: list[tuple[float, float, float]], sync_s: float
) -> None:
    boards = Assigner(MemoryNeeds(load), boards_of(load, able), sync_s)
    counts = boards.counts
    best = min(
        boards.token_s(RankCounts([*attention], [*ffn], all_on_hub(counts.head, len(able))))
        for attention in all_partitions(counts.attention, len(able))
        for ffn in all_partitions(counts.ffn, len(able))
    )
    found = [boards.token_s(hands) for hands in boards.candidates()]
    assert min(found, default=math.inf) == pytest.approx(best)


@settings(max_examples=40)
@given(loads, st.lists(abilities, min_size=1, max_size=3), st.booleans())
def test_every_candidate_can_be_planned_exactly(
    load: Load, able: list[tuple[float, float, float]], split_head: bool
) -> None:
    boards = Assigner(MemoryNeeds(load), boards_of(load, able), 0.0, gather if split_head else None)
    for hands in boards.candidates():
        assert [sum(kind) for kind in hands] == [*boards.counts]
        for rank, part in enumerate(slices_of(*hands)):
            if rank and counts_of(part) == Counts(0, 0, 0):
                continue
            facts = boards.boards[rank]
            plan = plan_slice(load, part, facts)
            assert plan.total <= facts.budget_bytes
            promised = boards.disk_s(rank, counts_of(part))
            if promised == 0:
                assert not plan.window.streamed
            else:  # whole shards stay, in so small a model large ones; and each read has to begin
                window, rates = plan.window, plan.reading.rates
                late = 0.15 * weights_bytes(load) / rates.disk
                late += len(window.streamed) * rates.latency_s
                assert window.forecast.s_per_token <= promised + window.forecast.compute_s + late


def gather(head: Sequence[int]) -> float:
    """Seconds for logits of the workers: a shard's take 10 µs."""
    return sum(head[1:]) * 1e-5 + (1e-4 if any(head[1:]) else 0.0)


@settings(max_examples=40)
@given(loads, st.lists(abilities, min_size=2, max_size=2), sync)
def test_no_other_shares_of_the_head_are_half_as_quick_again(
    load: Load, able: list[tuple[float, float, float]], sync_s: float
) -> None:
    facts, needs = boards_of(load, able), MemoryNeeds(load)
    boards, kept = Assigner(needs, facts, sync_s, gather), Assigner(needs, facts, sync_s)
    counts = boards.counts
    best = min(
        boards.token_s(RankCounts([*attention], [*ffn], [*head]))
        for attention in all_partitions(counts.attention, 2)
        for ffn in all_partitions(counts.ffn, 2)
        for head in all_partitions(counts.head, 2)
    )
    found, without = (
        min(map(each.token_s, each.candidates()), default=math.inf) for each in (boards, kept)
    )
    assert best <= found <= without
    assert math.isinf(best) == math.isinf(found)
    assert math.isinf(best) or found <= 1.5 * best


def test_many_groups_are_dealt_without_trying_all() -> None:
    load = load_of(4, 1024, groups=16, shards=12)
    whole = weights_bytes(load) / MB
    facts = [board(str(i), 8e9, 75 + whole / 7) for i in range(8)]
    boards = Assigner(MemoryNeeds(load), facts, 1e-3)
    found = list(boards.candidates())
    assert found
    assert boards.disk_s(0, boards.counts) > 0.5  # one board alone reads most of it
    assert boards.token_s(found[0]) < 0.2


def test_slices_of_a_load_are_the_packs_own(tmp_path: Path) -> None:
    pack_source(open_source(write_tiny_model(tmp_path / "hf")), tmp_path / "tiny.pico", bits=4)
    packed = Pack.open(tmp_path / "tiny.pico")
    load = load_of_pack(packed, packed.all_shards, OpenOptions())
    words = packed.n_head_shards
    for attention, ffn, head in (
        ([1, 2], [2, 0], [words, 0]),
        ([0, 3], [1, 1], [words - 1, 1]),
        ([3, 0], [2, 0], [0, words]),
    ):
        for part in slices_of(attention, ffn, head):
            assert slice_load(load, part) == load_of_pack(packed, part, OpenOptions())


def test_a_slice_has_its_shards_and_a_worker_no_head() -> None:
    load = load_of(3, 512, 4, 8)
    part = Slice(range(1, 3), range(2, 7), owns_head=False)
    worker = slice_load(load, part, numpy=True)
    assert worker.part == part
    assert worker.numpy
    assert [run.kind for run in worker.runs] == ["attention", "ffn"] * 3
    assert {(run.kind, run.shards) for run in worker.runs} == {
        ("attention", range(1, 3)),
        ("ffn", range(2, 7)),
    }
    hub = slice_load(load, Slice(range(0), range(0), range(3, 9)))
    assert [(run.kind, run.shards) for run in hub.runs] == [("head", range(3, 9))]
