"""A plan made for other speeds is changed while decoding, within its memory and without a trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoedge.engine.fit import TOKENS, WindowTuner
from picoedge.kernels.loader import load_kernels
from picoedge.model.transformer import Transformer
from picoedge.planner.memory import Budget, Load, MemoryPlan, Reading, plan_memory
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import Unit
from picoedge.store.window.plan import Rates, adjusted, page_bytes, plan_window
from picoedge.store.window.weights import StreamedWeights

N_CTX = 64


def runs(layers: int, shards: int, shard_bytes: int) -> tuple[Unit, ...]:
    found: list[Unit] = []
    for layer in range(layers):
        file = f"layer-{layer:03d}.safetensors"
        found.append(Unit("attention", layer, range(4), file, 4096, 4 * shard_bytes))
        at = 4096 + 4 * shard_bytes
        found.append(Unit("ffn", layer, range(shards), file, at, shards * shard_bytes))
    return (*found, Unit("head", layers, range(8), "head.safetensors", 4096, 8 * shard_bytes))


SPEEDS = st.floats(1e6, 1e11)


@given(
    st.integers(1, 12), st.integers(1, 40), st.integers(1, 300), st.floats(0, 1),
    SPEEDS, SPEEDS, SPEEDS, SPEEDS,
)  # fmt: skip
def test_an_adjusted_plan_keeps_every_shard_and_its_memory(
    layers: int, shards: int, pages: int, share: float,
    disk: float, compute: float, later_disk: float, later_compute: float,
) -> None:  # fmt: skip
    all_runs = runs(layers, shards, pages * 4096)
    memory = int(share * sum(run.nbytes for run in all_runs))
    plan = plan_window(all_runs, memory, Rates(disk, compute), 1 << 20)
    if plan is None:
        return
    other = adjusted(plan, Rates(later_disk, later_compute))
    assert other.resident_bytes + other.window_bytes <= plan.resident_bytes + plan.window_bytes
    assert shards_of(other.units) == shards_of(plan.units)
    attention = [unit for unit in plan.units if unit.kind == "attention"]
    assert [unit for unit in other.units if unit.kind == "attention"] == attention
    largest = max(map(page_bytes, plan.streamed), default=0)
    assert max(map(page_bytes, other.streamed), default=0) <= largest


def shards_of(units: tuple[Unit, ...]) -> list[tuple[str, int, int]]:
    return [(unit.kind, unit.layer, shard) for unit in units for shard in unit.shards]


@pytest.fixture
def small(smollm2_pack: Path) -> Pack:
    return Pack.open(smollm2_pack)


@pytest.fixture
def misjudged(small: Pack) -> MemoryPlan:
    """Made for a disk that is a thousand times quicker than the processor."""
    part = small.all_shards
    load = Load(small.config, part, small.spans(part), small.ffn_shard_cols, N_CTX, 16)
    reading = Reading("direct", Rates(disk=1e12, compute=1e9))
    return plan_memory(load, Budget(60 << 20, 6 << 20), [reading])


def test_decoding_goes_on_as_it_would_have(small: Pack, misjudged: MemoryPlan) -> None:
    tokens = [300, 11, 4000, 1, 523, 9, 2, 6] * 4
    with closing(Transformer(small, load_kernels(None, 1), N_CTX)) as whole:
        expected = [logits.copy() for logits in decoded(whole, tokens)]
    part = small.all_shards
    weights = StreamedWeights(small, part, misjudged.window, io="direct")
    kernels = load_kernels(None, 1)
    with closing(Transformer(small, kernels, N_CTX, holding=weights)) as model:
        tuner = WindowTuner(model, weights, misjudged)
        model.after_forward = tuner
        for logits, wanted in zip(decoded(model, tokens), expected, strict=True):
            np.testing.assert_array_equal(logits, wanted)
    assert tuner.plan.reading.rates.disk < 1e12
    assert tuner.plan.window == weights.plan
    assert tuner.plan.total <= misjudged.total


def decoded(model: Transformer, tokens: list[int]) -> Iterator[np.ndarray]:
    for position, token in enumerate(tokens):
        yield model.forward((token,), position)


def test_a_slow_disk_gets_a_smaller_window(small: Pack, misjudged: MemoryPlan) -> None:
    rates = dataclasses.replace(misjudged.reading.rates, disk=2e7)
    other = adjusted(misjudged.window, rates)
    assert other.window_bytes < misjudged.window.window_bytes
    assert other.resident_bytes > misjudged.window.resident_bytes


def test_a_prompt_tells_nothing(small: Pack, misjudged: MemoryPlan) -> None:
    part = small.all_shards
    weights = StreamedWeights(small, part, misjudged.window, io="direct")
    kernels = load_kernels(None, 1)
    with closing(Transformer(small, kernels, N_CTX, holding=weights)) as model:
        tuner = WindowTuner(model, weights, misjudged)
        model.after_forward = tuner
        for _ in range(TOKENS + 2):
            model.forward((1, 2, 3), 0)
        assert tuner.plan is misjudged
