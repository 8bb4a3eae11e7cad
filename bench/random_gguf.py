"""A GGUF of random weights in Q4_1, streamed to disk: one matrix is in memory at a time.

Blocks are quantized once, by the `gguf` library, and dealt out again and again.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.random_models import NORM_SD, WEIGHT_SD, Shape, tokenizer_metadata
from picoedge.kernels.arrays import U8

BLOCK, POOL_BLOCKS = 32, 1 << 16  # weights of a Q4_1 block; distinct blocks


def write_gguf(path: Path, shape: Shape, seed: int = 0) -> None:
    """Write a llama model with a SentencePiece vocabulary that llama.cpp loads and we can pack."""
    gguf = importlib.import_module("gguf")
    rng = np.random.default_rng(seed)
    pool = _pool(gguf, rng)
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, shape)
    _announce(writer, gguf, shape, pool.shape[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, rows, cols in _matrices(shape):
        writer.write_tensor_data(pool[rng.integers(0, len(pool), rows * cols // BLOCK)])
    for _ in _norms(shape):
        norm = 1 + NORM_SD * rng.standard_normal(shape.hidden_size)
        writer.write_tensor_data(norm.astype(np.float32))
    writer.close()


def _matrices(shape: Shape) -> Iterator[tuple[str, int, int]]:
    """(name, rows, cols) of every matrix, in the order of the file."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    kv_rows = shape.num_key_value_heads * shape.head_dim
    yield "token_embd.weight", shape.vocab_size, hidden
    for i in range(shape.num_hidden_layers):
        yield f"blk.{i}.attn_q.weight", hidden, hidden
        yield f"blk.{i}.attn_k.weight", kv_rows, hidden
        yield f"blk.{i}.attn_v.weight", kv_rows, hidden
        yield f"blk.{i}.attn_output.weight", hidden, hidden
        yield f"blk.{i}.ffn_gate.weight", inner, hidden
        yield f"blk.{i}.ffn_up.weight", inner, hidden
        yield f"blk.{i}.ffn_down.weight", hidden, inner
    yield "output.weight", shape.vocab_size, hidden


def _norms(shape: Shape) -> Iterator[str]:
    for i in range(shape.num_hidden_layers):
        yield f"blk.{i}.attn_norm.weight"
        yield f"blk.{i}.ffn_norm.weight"
    yield "output_norm.weight"


def _pool(gguf: Any, rng: np.random.Generator) -> U8:
    """Distinct Q4_1 blocks, u8 [n, 20]."""
    weights = (WEIGHT_SD * rng.standard_normal((POOL_BLOCKS, BLOCK))).astype(np.float32)
    blocks: U8 = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q4_1)
    return blocks


def _describe(writer: Any, shape: Shape) -> None:
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_vocab_size(shape.vocab_size)
    add = {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}
    for key, value in tokenizer_metadata(shape.vocab_size).items():
        add[type(value)](key, value)


def _announce(writer: Any, gguf: Any, shape: Shape, block_bytes: int) -> None:
    u8, f32 = np.dtype(np.uint8), np.dtype(np.float32)
    for name, rows, cols in _matrices(shape):
        row_bytes = cols // BLOCK * block_bytes
        writer.add_tensor_info(
            name, (rows, row_bytes), u8, rows * row_bytes, gguf.GGMLQuantizationType.Q4_1
        )
    for name in _norms(shape):
        writer.add_tensor_info(name, (shape.hidden_size,), f32, 4 * shape.hidden_size)
