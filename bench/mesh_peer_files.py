"""Random models as peers read them: distributed-llama's two files, a Hugging Face folder in f32."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from bench.random_models import NORM_SD, WEIGHT_SD, Shape, tokenizer_metadata
from bench.random_offload import tensors
from picoedge.kernels.arrays import F64, U8
from picoedge.text.export.export import write_from_gguf

# -- distributed-llama -----------------------------------------------------------------------------

# converter/writer.py and src/llm.hpp of distributed-llama: (key, value) pairs of int32.
_MODEL_MAGIC, _TOKENIZER_MAGIC = 0xA00ABCD, 0x567124
_LLAMA, _SILU, _Q40 = 0xABCD00, 1, 2
_BLOCK, _BLOCK_BYTES, _POOL_BLOCKS = 32, 18, 1 << 16


def write_distributed_llama(folder: Path, shape: Shape, seed: int = 0) -> None:
    """`model.m` in Q40 (its embedding in f32, as its converter has it) and `tokenizer.t`."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    with (folder / "model.m").open("wb") as file:
        _write_pairs(file, _MODEL_MAGIC, _model_header(shape))
        pool = _q40_pool(rng)
        _write_f32(file, WEIGHT_SD * rng.standard_normal(1 << 20), shape.vocab_size, shape)
        for rows, cols in _matrices(shape):
            if rows:
                file.write(pool[rng.integers(0, _POOL_BLOCKS, rows * cols // _BLOCK)].tobytes())
            else:
                _write_f32(file, 1 + NORM_SD * rng.standard_normal(cols), 1, shape)
    with (folder / "tokenizer.t").open("wb") as file:
        _write_tokenizer(file, shape.vocab_size)


def _model_header(shape: Shape) -> list[tuple[int, int]]:
    return [
        (0, 0), (1, _LLAMA), (2, shape.hidden_size), (3, shape.intermediate_size),
        (4, shape.num_hidden_layers), (5, shape.num_attention_heads),
        (6, shape.num_key_value_heads), (7, 0), (8, 0), (9, shape.vocab_size),
        (10, shape.max_position_embeddings), (11, _SILU), (12, int(shape.rope_theta)),
        (13, _Q40),
    ]  # fmt: skip


def _write_pairs(file: IO[bytes], magic: int, pairs: list[tuple[int, int]]) -> None:
    data = b"".join(struct.pack("<ii", *pair) for pair in pairs)
    file.write(struct.pack("<ii", magic, 8 + len(data)) + data)


def _matrices(shape: Shape) -> Iterator[tuple[int, int]]:
    """(rows, cols) in the order of `loadLlmNetWeight`; rows 0: a norm in f32."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    kv_rows = shape.num_key_value_heads * shape.head_dim
    for _ in range(shape.num_hidden_layers):
        yield from ((hidden, hidden), (kv_rows, hidden), (kv_rows, hidden), (hidden, hidden))
        yield from ((inner, hidden), (hidden, inner), (inner, hidden), (0, hidden), (0, hidden))
    yield from ((0, hidden), (shape.vocab_size, hidden))


def _q40_pool(rng: np.random.Generator) -> U8:
    """Distinct blocks, u8 [n, 18]: an f16 scale and 32 nibbles."""
    pool = rng.integers(0, 256, (_POOL_BLOCKS, _BLOCK_BYTES), np.uint8)
    scales = np.full(_POOL_BLOCKS, WEIGHT_SD / 4, "<f2")
    pool[:, :2] = scales.view(np.uint8).reshape(-1, 2)
    return pool


def _write_f32(file: IO[bytes], values: F64, rows: int, shape: Shape) -> None:
    numbers, left = values.astype("<f4"), rows * shape.hidden_size
    while left > 0:
        file.write(numbers[:left].tobytes())
        left -= len(numbers)


def _write_tokenizer(file: IO[bytes], vocab_size: int) -> None:
    """Its tokenizer takes all from BOS on for special: BOS and EOS come last here."""
    given = tokenizer_metadata(vocab_size)["tokenizer.ggml.tokens"]
    pieces = [piece.replace("▁", " ").encode() for piece in given[3 + 256 :]]
    spare = (b"~%d" % i for i in itertools.count())
    tokens = [*pieces, *itertools.islice(spare, 3 + 256 - 2), b"<s>", b"</s>"]
    pairs = [
        (0, 1), (1, vocab_size), (2, max(map(len, tokens))), (3, vocab_size - 2), (9, 1), (10, 1),
    ]  # fmt: skip
    _write_pairs(file, _TOKENIZER_MAGIC, pairs)
    file.write(struct.pack("<i", vocab_size - 1))
    for i, token in enumerate(tokens):
        file.write(struct.pack("<fI", -float(i), len(token)) + token)


# -- Hugging Face ----------------------------------------------------------------------------------


def write_hugging_face(folder: Path, shape: Shape, seed: int = 0) -> None:
    """`model.safetensors` in f32, its configuration and tokenizer: what TPI-LLM splits."""
    folder.mkdir(parents=True)
    _write_safetensors(folder / "model.safetensors", shape, seed)
    write_from_gguf(tokenizer_metadata(shape.vocab_size), folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
                    "unk_token": "<unk>", "legacy": True})
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(_config(shape)))
    (folder / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2}')


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
        "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers, "vocab_size": shape.vocab_size,
        "num_attention_heads": shape.num_attention_heads, "hidden_act": "silu",
        "num_key_value_heads": shape.num_key_value_heads, "bos_token_id": 1, "eos_token_id": 2,
        "max_position_embeddings": shape.max_position_embeddings, "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.rms_norm_eps, "tie_word_embeddings": False, "use_cache": True,
    }  # fmt: skip


def _write_safetensors(path: Path, shape: Shape, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = (WEIGHT_SD * rng.standard_normal(1 << 20)).astype("<f4")
    header, at = {}, 0
    for name, dims in tensors(shape):
        end = at + 4 * int(np.prod(dims))
        header[name] = {"dtype": "F32", "shape": dims, "data_offsets": [at, end]}
        at = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, dims in tensors(shape):
            left, values = int(np.prod(dims)), weights + ("norm" in name)
            while left > 0:
                file.write(values[:left].tobytes())
                left -= len(values)
