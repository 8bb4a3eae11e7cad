"""Random adapters for small models, and models whose weights have them already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from picoedge.config import ModelConfig
from picoedge.model.adapter import AdapterSlice
from picoedge.store.adapters import Adapter
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.adapter_matrices import as_stored
from picoedge.store.sources.tensors import tensor_shapes

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def random_adapter(
    config: ModelConfig,
    names: Sequence[str] = NAMES,
    rank: int = 4,
    seed: int = 3,
    strength: float = 2.0,
) -> Adapter:
    """An adapter that adds about half of what the base's matrices are, as PEFT has it."""
    rng = np.random.default_rng(seed)
    shapes = tensor_shapes(replace(config, num_hidden_layers=1))
    matrices = {}
    for layer in range(config.num_hidden_layers):
        for name in names:
            rows, cols = shapes[f"layers.0.{name.removesuffix('_proj')}"]
            a = rng.standard_normal((rank, cols), np.float32) / np.float32(cols**0.5)
            b = rng.standard_normal((rows, rank), np.float32) / np.float32(4 * rank**0.5)
            matrices[layer, name] = a, b
    adapter = Adapter("random", rank, strength * rank, False, tuple(names), matrices)
    return as_stored(adapter, config)


def prepared(pack: Pack, adapter: Adapter) -> AdapterSlice:
    """The adapter for a pack."""
    return AdapterSlice.prepare(adapter, pack.config, pack.ffn_shard_cols)
