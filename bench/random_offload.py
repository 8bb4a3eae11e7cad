"""Accelerate's offload folder of random f32 weights: one raw file a tensor and an index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.random_models import WEIGHT_SD, Shape

INDEX = "index.json"
_POOL = 1 << 22  # distinct values


def write_offload(folder: Path, shape: Shape, seed: int = 0) -> None:
    """Write what `accelerate.disk_offload` would, without ever holding the model."""
    folder.mkdir(parents=True)
    pool = WEIGHT_SD * np.random.default_rng(seed).standard_normal(_POOL)
    values = pool.astype(np.float32)
    index = {}
    for name, dims in tensors(shape):
        count = int(np.prod(dims))
        with (folder / f"{name}.dat").open("wb") as file:
            for at in range(0, count, _POOL):
                file.write(values[: min(_POOL, count - at)].data)
        index[name] = {"dtype": "float32", "shape": dims}
    (folder / INDEX).write_text(json.dumps(index))  # last: a folder without it is not whole


def tensors(shape: Shape) -> Iterator[tuple[str, list[int]]]:
    """(name in Hugging Face's state dict, dimensions)."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    kv_rows = shape.num_key_value_heads * shape.head_dim
    yield "model.embed_tokens.weight", [shape.vocab_size, hidden]
    for i in range(shape.num_hidden_layers):
        layer = f"model.layers.{i}"
        yield f"{layer}.self_attn.q_proj.weight", [hidden, hidden]
        yield f"{layer}.self_attn.k_proj.weight", [kv_rows, hidden]
        yield f"{layer}.self_attn.v_proj.weight", [kv_rows, hidden]
        yield f"{layer}.self_attn.o_proj.weight", [hidden, hidden]
        yield f"{layer}.mlp.gate_proj.weight", [inner, hidden]
        yield f"{layer}.mlp.up_proj.weight", [inner, hidden]
        yield f"{layer}.mlp.down_proj.weight", [hidden, inner]
        yield f"{layer}.input_layernorm.weight", [hidden]
        yield f"{layer}.post_attention_layernorm.weight", [hidden]
    yield "model.norm.weight", [hidden]
    yield "lm_head.weight", [shape.vocab_size, hidden]
