"""A model with an adapter: the merged weights' logits, and one text however it is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from adapters_material import NAMES, prepared, random_adapter
from random_models import packed_model
from threads_as_boards import on_boards, with_hub
from tiny_model import write_tiny_model

from picoedge.errors import ModelError, ProtocolError
from picoedge.kernels.api import Kernels
from picoedge.kernels.loader import load_kernels
from picoedge.model.adapter import AdapterSlice, slice_values
from picoedge.model.transformer import Transformer
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import Slice
from picoedge.store.sources.source import open_source

TOKENS = [3, 141, 59, 26, 53, 58, 97, 93, 23, 84, 62, 64, 33, 83, 27, 95, 2, 88, 41, 97, 169]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    folder: Path = tmp_path_factory.mktemp("adapted")
    pack_source(open_source(write_tiny_model(folder / "hf")), folder / "tiny.pico", bits=6)
    return Pack.open(folder / "tiny.pico")


@pytest.fixture(scope="module")
def adapter(packed: Pack) -> AdapterSlice:
    return prepared(packed, random_adapter(packed.config, rank=5))


def steps(model: Transformer) -> np.ndarray:
    """Logits after a prompt, then after single tokens."""
    seen = [model.forward(TOKENS, 0).copy()]
    for i, token in enumerate((7, 200, 31)):
        seen.append(model.forward([token], len(TOKENS) + i).copy())
    return np.stack(seen)


def run(packed: Pack, kernels: Kernels, adapter: AdapterSlice | None, batch: int = 8) -> np.ndarray:
    model = Transformer(packed, kernels, 64, batch=batch, adapter=adapter)
    try:
        return steps(model)
    finally:
        model.close()


@pytest.fixture(scope="module")
def alone(packed: Pack, adapter: AdapterSlice) -> np.ndarray:
    return run(packed, load_kernels("native", 1), adapter)


def test_it_changes_the_logits(packed: Pack, alone: np.ndarray) -> None:
    plain = run(packed, load_kernels("native", 1), None)
    assert np.abs(alone - plain).max() > 0.1 * np.abs(plain).max()


def test_zeros_change_no_bit(packed: Pack) -> None:
    adapter = random_adapter(packed.config)
    zeros = {key: (a, np.zeros_like(b)) for key, (a, b) in adapter.matrices.items()}
    nothing = prepared(packed, type(adapter)(**{**vars(adapter), "matrices": zeros}))
    plain = run(packed, load_kernels("native", 1), None)
    np.testing.assert_array_equal(run(packed, load_kernels("native", 1), nothing), plain)


def test_both_backends_agree(packed: Pack, adapter: AdapterSlice, alone: np.ndarray) -> None:
    logits = run(packed, load_kernels("numpy", 1), adapter)
    assert np.abs(logits - alone).max() < 0.02 * np.abs(alone).max()


@pytest.mark.parametrize(("threads", "batch"), [(2, 8), (3, 21), (1, 1), (2, 5)])
def test_threads_and_chunks_do_not_change_a_bit(
    packed: Pack, adapter: AdapterSlice, alone: np.ndarray, threads: int, batch: int
) -> None:
    logits = run(packed, load_kernels("native", threads), adapter, batch)
    np.testing.assert_array_equal(logits, alone)


SPLITS = {
    "even": [Slice(range(2), range(1), range(16)), Slice(range(2, 3), range(1, 2), range(16))],
    "one without attention": [
        Slice(range(3), range(1), range(16)),
        Slice(range(0), range(1, 2), range(16)),
    ],
}


@pytest.mark.parametrize("split", SPLITS.values(), ids=list(SPLITS))
@pytest.mark.parametrize("is_sent", [True, False], ids=["sent", "whole"])
def test_boards_do_not_change_a_bit(
    packed: Pack, adapter: AdapterSlice, alone: np.ndarray, split: list[Slice], is_sent: bool
) -> None:
    def own(part: Slice) -> AdapterSlice:
        """What a board has: all, or what it was sent."""
        if not is_sent:
            return adapter
        values = adapter.of(part).values()
        assert len(values) == slice_values(adapter.shape, adapter.cut, part)
        return AdapterSlice.from_values(adapter.shape, adapter.cut, part, values)

    for logits in on_boards(packed, split, steps, adapter=own):
        np.testing.assert_array_equal(logits, alone)


def test_a_head_over_boards_does_not_either(
    packed: Pack, adapter: AdapterSlice, alone: np.ndarray
) -> None:
    parts = [
        Slice(range(1), range(1), range(3)),
        Slice(range(1, 3), range(1, 2), range(3, 16), owns_head=False),
    ]
    np.testing.assert_array_equal(with_hub(packed, parts, steps, adapter=adapter.of), alone)


@pytest.mark.parametrize("name", ["llama-3-groups-of-3", "qwen2-bias", "qwen3-norms", "gemma3"])
def test_the_logits_are_those_of_merged_weights(tmp_path: Path, name: str) -> None:
    from safetensors.numpy import load_file, save_file

    pack = packed_model(name, tmp_path, 32)
    adapter = random_adapter(pack.config)
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    for (layer, target), (a, b) in adapter.matrices.items():
        part = "self_attn" if target in NAMES[:4] else "mlp"
        weights[f"model.layers.{layer}.{part}.{target}.weight"] += adapter.scale(layer, target) * (
            b @ a
        )
    save_file(weights, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    pack_source(open_source(tmp_path / "hf"), tmp_path / "merged.pico", bits=32)
    got = run(pack, load_kernels("native", 2), prepared(pack, adapter))
    want = run(Pack.open(tmp_path / "merged.pico"), load_kernels("native", 2), None)
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


def another_layer(adapter: AdapterSlice) -> dict[str, tuple[int, ...]]:
    return {name: (*ranks, 1) for name, ranks in adapter.shape.ranks.items()}


def above_the_width(adapter: AdapterSlice) -> dict[str, tuple[int, ...]]:
    return {name: tuple(600 for _ in ranks) for name, ranks in adapter.shape.ranks.items()}


def test_a_rank_between_the_sides_of_a_matrix_is_sent_whole(packed: Pack) -> None:
    wide = prepared(packed, random_adapter(packed.config, ("k_proj",), rank=120))  # 96 x 256
    part = packed.all_shards
    values = wide.of(part).values()
    assert len(values) == slice_values(wide.shape, wide.cut, part)
    sent = AdapterSlice.from_values(wide.shape, wide.cut, part, values)
    native = load_kernels("native", 1), load_kernels("native", 1)
    np.testing.assert_array_equal(run(packed, native[0], sent), run(packed, native[1], wide))


@pytest.mark.parametrize("ranks", [another_layer, above_the_width])
def test_shapes_that_no_hub_sends_are_refused(
    packed: Pack, adapter: AdapterSlice, ranks: Callable[[AdapterSlice], dict[str, tuple[int, ...]]]
) -> None:
    shape = type(adapter.shape)("0" * 32, ranks(adapter))
    with pytest.raises(ProtocolError):
        slice_values(shape, adapter.cut, packed.all_shards)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, packed: Pack) -> None:
    other = packed_model("llama", tmp_path, 32)
    with pytest.raises(ModelError, match="the adapter is of another model"):
        prepared(packed, random_adapter(other.config))


def test_values_that_grow_beyond_f32_are_refused(packed: Pack) -> None:
    adapter = random_adapter(packed.config, ("q_proj",))
    huge = {key: (a, b * np.float32(1e34)) for key, (a, b) in adapter.matrices.items()}
    diverged = type(adapter)(**{**vars(adapter), "matrices": huge, "alpha": 1e6})
    with pytest.raises(ModelError, match="q_proj of layer 0 is beyond what f32 holds"):
        prepared(packed, diverged)


def test_its_hash_is_that_of_what_it_adds(packed: Pack, adapter: AdapterSlice) -> None:
    same = prepared(packed, random_adapter(packed.config, rank=5))
    other = prepared(packed, random_adapter(packed.config, rank=5, seed=4))
    assert same.shape == adapter.shape
    assert other.shape.identity != adapter.shape.identity
