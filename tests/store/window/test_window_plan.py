"""Properties of the plan: what stays, how the window is laid out, what it promises."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given as given_any
from hypothesis import settings
from hypothesis import strategies as st

from picoedge.config import ModelConfig
from picoedge.errors import MemoryBudgetError
from picoedge.planner.memory import (
    Budget,
    Load,
    MemoryPlan,
    Reading,
    plan_memory,
)
from picoedge.store.pages import PAGE, page_up
from picoedge.store.shards import Slice, Unit
from picoedge.store.window.plan import (
    RESIDENT_BYTES,
    Rates,
    Ring,
    UnitCost,
    forecast,
    lay_ring,
    page_bytes,
    plan_window,
    spread,
)
from picoedge.units import parse_size

KB, MB = 1 << 10, 1 << 20
RATES = Rates(disk=100e6, compute=10e9)
Runs = tuple[Unit, ...]


def given(*values: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Some dozens of examples, however slow the board."""
    return lambda test: settings(deadline=None, max_examples=60)(given_any(*values)(test))


def model_runs(
    layers: int, attention: tuple[int, int], ffn: tuple[int, int], head: tuple[int, int]
) -> Runs:
    """Runs in order of use; each kind is (shards, bytes of one), and begins on a page."""
    runs: list[Unit] = []
    for layer in range(layers):
        file, at = f"layer-{layer:03d}.safetensors", PAGE
        for kind, (count, each) in (("attention", attention), ("ffn", ffn)):
            runs.append(Unit(kind, layer, range(count), file, at, count * each))  # type: ignore[arg-type]
            at = page_up(at + count * each)
    count, each = head
    runs.append(Unit("head", layers, range(count), "head.safetensors", PAGE, count * each))
    return tuple(runs)


def shards(most: int) -> st.SearchStrategy[tuple[int, int]]:
    """How many shards a run has, and bytes of one: a multiple of 64."""
    sizes = st.integers(16, 8 * KB).map(lambda n: 64 * n)
    return st.tuples(st.integers(1, most), sizes)


models = st.builds(model_runs, st.integers(1, 12), shards(8), shards(24), shards(12))
shares = st.floats(0.0, 1.1)


def total_bytes(runs: Runs) -> int:
    return sum(run.nbytes for run in runs)


# -- what stays ----------------------------------------------------------------------------------


def held_bytes(run: Unit, shards: int) -> int:
    """Memory of some shards of a run, in units of at most 8 MB that begin and end within pages."""
    units = -(-shards // max(1, RESIDENT_BYTES // run.shard_bytes))
    return shards * run.shard_bytes + units * 2 * PAGE


@given(models, shares)
def test_as_many_shards_stay_as_fit(runs: Runs, share: float) -> None:
    memory = int(share * total_bytes(runs))
    kept = spread(runs, memory)
    assert set(kept) == set(runs)
    assert all(0 <= count <= len(run.shards) for run, count in kept.items())
    left = memory - sum(held_bytes(run, count) for run, count in kept.items())
    assert left >= 0
    for run, count in kept.items():
        if count < len(run.shards) and run.kind != "head":
            assert held_bytes(run, count + 1) - held_bytes(run, count) > left


@given(models, shares)
def test_resident_units_are_spread_evenly(runs: Runs, share: float) -> None:
    """At each layer the disk has about its share behind it: never far more or far less to read."""
    kept = spread(runs, int(share * total_bytes(runs)))
    layers = runs[:-1]
    held = sum(kept[run] * run.shard_bytes for run in layers)
    part = held / total_bytes(layers)
    slack = 3 * max(run.shard_bytes for run in layers) + 2 * PAGE * len(layers)
    so_far = so_far_held = 0
    for run in layers:
        so_far += run.nbytes
        so_far_held += kept[run] * run.shard_bytes
        assert abs(so_far_held - part * so_far) <= slack


@given(models, shares)
def test_the_head_goes_first(runs: Runs, share: float) -> None:
    kept = spread(runs, int(share * total_bytes(runs)))
    *layers, head = runs
    if any(kept[run] for run in layers):
        smallest = min(run.shard_bytes for run in layers)
        assert kept[head] == len(head.shards) or head.shard_bytes > smallest


# -- the ring ------------------------------------------------------------------------------------

unit_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(unit_sizes, st.integers(0, 100))
def test_a_ring_stays_within_its_bytes(sizes: list[int], more: int) -> None:
    ring = lay_ring(sizes, max(sizes) + more)
    ends = [place + size for place, size in zip(ring.places, sizes, strict=True)]
    assert max(ends) == ring.nbytes <= max(sizes) + more
    assert min(ring.places) == 0
    assert ring.depth >= 1


@given(unit_sizes, st.integers(0, 100), st.integers(0, 1 << 32))
def test_no_unit_is_written_over_one_that_is_live(sizes: list[int], more: int, seed: int) -> None:
    """Whatever the order of fills and uses that the ring allows, and one is always allowed."""
    ring, order = lay_ring(sizes, max(sizes) + more), random.Random(seed)
    used = filled = 0
    while used < 3 * len(sizes):
        may_fill = used > filled - ring.behind[filled % len(sizes)]
        may_use = filled > used
        assert may_fill or may_use
        if may_fill and (not may_use or order.random() < 0.7):
            filled += 1
            assert apart(ring, sizes, range(used, filled))
        else:
            used += 1


def apart(ring: Ring, sizes: list[int], live: range) -> bool:
    """Whether no two of the units with these sequence numbers share a byte."""
    taken: set[int] = set()
    for i in live:
        place, size = ring.places[i % len(sizes)], sizes[i % len(sizes)]
        mine = set(range(place, place + size))
        if taken & mine:
            return False
        taken |= mine
    return True


@given(st.integers(1, 10), st.integers(2, 6))
def test_of_equal_units_as_many_are_held_as_there_is_room_for(rounds: int, room: int) -> None:
    ring = lay_ring([7] * (rounds * room), 7 * room)
    assert ring.depth == room
    # One more: where the cycle closes, the last lies where the first is to come.
    with_seam = lay_ring([7] * (rounds * room + 1), 7 * room)
    assert with_seam.depth == 1
    assert min(with_seam.behind[1:]) >= room


# -- the forecast --------------------------------------------------------------------------------

all_steps = st.lists(
    st.builds(UnitCost, st.integers(KB, 4 * MB), st.booleans()), min_size=1, max_size=40
)


def ring_of(steps: list[UnitCost], units: int) -> Ring:
    sizes = [step.nbytes for step in steps if step.streamed]
    return lay_ring(sizes, units * max(sizes, default=0))


@given(all_steps, st.integers(1, 6), st.floats(1e6, 5e9), st.floats(1.01, 50))
def test_a_faster_disk_is_never_slower(
    steps: list[UnitCost], units: int, disk: float, factor: float
) -> None:
    ring = ring_of(steps, units)
    slow, fast = (forecast(steps, ring, Rates(rate, 10e9)) for rate in (disk, factor * disk))
    assert fast.s_per_token <= slow.s_per_token * 1.01
    assert fast.disk_s <= slow.disk_s
    assert fast.compute_s == slow.compute_s


@given(all_steps, st.integers(1, 6))
def test_a_disk_that_is_far_slower_is_the_clock(steps: list[UnitCost], units: int) -> None:
    steps = [*steps, UnitCost(MB, True)]
    ring = ring_of(steps, units)
    predicted = forecast(steps, ring, Rates(disk=1e3, compute=10e9))
    streamed = sum(step.nbytes for step in steps if step.streamed)
    assert predicted.s_per_token == pytest.approx(streamed / 1e3, rel=0.01)
    assert predicted.clock == "disk"


@given(all_steps, st.floats(0, 0.1))
def test_without_streaming_computing_is_the_clock(steps: list[UnitCost], token_s: float) -> None:
    steps = [UnitCost(step.nbytes, False) for step in steps]
    rates = Rates(disk=1e3, compute=10e9, token_s=token_s)
    predicted = forecast(steps, lay_ring([], 0), rates)
    n_bytes = sum(step.nbytes for step in steps)
    assert predicted.s_per_token == pytest.approx(predicted.compute_s)
    assert predicted.compute_s == pytest.approx(n_bytes / 10e9 + len(steps) * 20e-6 + token_s)
    assert (predicted.disk_s, predicted.clock) == (0.0, "compute")


@given(all_steps, st.integers(1, 6), st.floats(1e5, 5e9), st.floats(1e8, 5e10))
def test_neither_disk_nor_processor_is_outrun(
    steps: list[UnitCost], units: int, disk: float, compute: float
) -> None:
    predicted = forecast(steps, ring_of(steps, units), Rates(disk, compute))
    assert predicted.s_per_token >= predicted.compute_s * 0.999


# -- the window ----------------------------------------------------------------------------------


@given(models, shares, st.sampled_from([256 * KB, MB, 4 * MB]), st.integers(0, 2 * MB))
def test_a_window_keeps_to_its_memory(runs: Runs, share: float, most: int, reserve: int) -> None:
    memory = int(share * total_bytes(runs))
    plan = plan_window(runs, memory, RATES, most, reserve=reserve)
    if plan is None:
        return
    taken = plan.resident_bytes + plan.window_bytes + (reserve if plan.streamed else 0)
    assert taken <= memory
    assert plan.touched_bytes == total_bytes(runs)
    assert sum(page_bytes(unit) for unit in plan.streamed) == plan.streamed_bytes
    assert plan.ring.depth >= min(1, len(plan.streamed))
    shards_in_order = [(u.kind, u.layer, i) for u in plan.units for i in u.shards]
    assert shards_in_order == [(run.kind, run.layer, i) for run in runs for i in run.shards]


# -- the whole budget ----------------------------------------------------------------------------

CONFIG = ModelConfig(
    architecture="llama",
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    vocab_size=8192,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
)
LOAD = Load(
    CONFIG,
    Slice(range(4), range(8), range(128)),
    model_runs(12, (4, 96 * KB), (8, 432 * KB), (128, 20 * KB)),
    256,
    512,
    16,
)
FIXED = 40 * MB
disks = st.floats(5e6, 3e9)
computes = st.floats(1e8, 5e10)
budgets = st.integers(FIXED, FIXED + 80 * MB)


def plan_of(total: int, disk: float, compute: float, *, reserve: int = 0) -> MemoryPlan | None:
    """None: refused."""
    readings = (
        Reading("direct", Rates(disk, compute)),
        Reading("mmap", Rates(disk * 0.9, compute), reserve),
    )
    try:
        return plan_memory(LOAD, Budget(total, FIXED), readings)
    except MemoryBudgetError:
        return None


def typical_s(plan: MemoryPlan) -> float:
    """Seconds of a prompt of 256 tokens and an answer of 64, as the planner weighs them."""
    predicted = plan.window.forecast
    return -(-256 // plan.batch) * predicted.disk_s + 64 * predicted.s_per_token


@given(budgets, disks, computes, st.integers(0, 4 * MB))
def test_a_plan_stays_within_its_budget(
    total: int, disk: float, compute: float, reserve: int
) -> None:
    plan = plan_of(total, disk, compute, reserve=reserve)
    if plan is not None:
        assert plan.total <= total
        assert plan.kv_cache > 0
        assert plan.activations > 0
        assert plan == plan_of(total, disk, compute, reserve=reserve)


@given(budgets, st.integers(0, 20 * MB), disks, computes)
def test_more_memory_is_not_slower(total: int, more: int, disk: float, compute: float) -> None:
    """A little more may move where the cycle closes; a unit's time is then lost or won."""
    small, large = plan_of(total, disk, compute), plan_of(total + more, disk, compute)
    if small is not None:
        assert large is not None
        assert typical_s(large) <= (1.05 if more >= 10 * MB else 1.15) * typical_s(small)


@given(budgets, st.sampled_from([16, 8]))
def test_a_budget_that_is_refused_does_not_fit_and_the_figures_say_what_would(
    total: int, kv_bits: int
) -> None:
    load = Load(CONFIG, LOAD.part, LOAD.runs, LOAD.ffn_shard_cols, 512, kv_bits)
    error = refusal(load, total)
    if error is None:
        return
    least = parse_size(error.message.rpartition("= ")[2])
    assert total <= least * 1.005  # three figures are told
    assert refusal(load, int(least * 1.005)) is None
    assert ("--kv-bits 8" in error.hint) == (kv_bits == 16)
    for figure in ("tokenizer 40 MB", "context of 512 tokens ", "buffers ", "window "):
        assert figure in error.message


def refusal(load: Load, total: int) -> MemoryBudgetError | None:
    try:
        plan_memory(load, Budget(total, FIXED), (Reading("direct", RATES),))
    except MemoryBudgetError as error:
        return error
    return None


def test_a_budget_for_all_of_it_streams_nothing() -> None:
    plan = plan_of(1 << 40, 100e6, 10e9)
    assert plan is not None
    assert not plan.window.streamed
    assert plan.window.streamed_bytes == plan.window.window_bytes == 0
    assert plan.window.forecast.clock == "compute"
    assert plan.to_json()["window_depth"] == 0


def test_a_smaller_context_or_fewer_bits_leave_more_resident() -> None:
    def resident(n_ctx: int, kv_bits: int) -> int:
        load = Load(CONFIG, LOAD.part, LOAD.runs, LOAD.ffn_shard_cols, n_ctx, kv_bits)
        plan = plan_memory(load, Budget(FIXED + 40 * MB, FIXED), (Reading("direct", RATES),))
        assert plan.window.streamed
        return plan.window.resident_bytes

    assert resident(512, 8) > resident(512, 16) > resident(1024, 16)
