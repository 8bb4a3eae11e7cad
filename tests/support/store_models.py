"""Small models that the store's tests write, and the values they must read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize as gguf_dequantize
from planes import unpack_planes
from safetensors.numpy import save_file

from picoedge.kernels.arrays import F32, U8
from picoedge.kernels.blocks import Weights, dequantize
from picoedge.store.encodings import ENCODINGS

EXACT = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 256, 512, 2, 4, 2, 64, 300


def random_rows(name: str, rows: int, cols: int, seed: int) -> U8:
    """Rows in an encoding, u8: random bytes, of which blocks with sane values are kept."""
    rng = np.random.default_rng(seed)
    encoding = ENCODINGS[name]
    if encoding.is_float:
        values = rng.normal(0, 0.1, (rows, cols)).astype(np.float32)
        return encode_floats(values, name)
    blocks = _sane_blocks(name)
    return blocks[rng.integers(0, len(blocks), rows * cols // encoding.elements)].reshape(rows, -1)


@cache
def _sane_blocks(name: str) -> U8:
    """Some hundreds of random blocks whose values are neither tiny, huge nor NaN."""
    candidates = np.random.default_rng(17).integers(
        0, 256, (6000, ENCODINGS[name].nbytes), np.uint8
    )
    largest = np.abs(as_floats(name, candidates)).max(axis=1)
    return candidates[(largest > 1e-3) & (largest < 4)]


def encode_floats(values: F32, name: str) -> U8:
    if name == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return values.astype({"F32": np.float32, "F16": np.float16}[name]).view(np.uint8)


def as_floats(name: str, rows: U8) -> F32:
    """What the reference library makes of rows in an encoding."""
    with np.errstate(all="ignore"):
        return gguf_dequantize(rows, gguf.GGMLQuantizationType[name]).astype(np.float32)


def write_gguf(
    path: Path,
    kind: str | Mapping[str, str] = "F32",
    *,
    architecture: str = "llama",
    tied: bool = True,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, F32] | None = None,
    without: tuple[str, ...] = (),
    seed: int = 0,
) -> dict[str, F32]:
    """Write a model; its tensors' values by GGUF name.

    `kind` is the encoding of all matrices, or of each by the end of its name. `keys` and
    `tensors` (f32) are added to, and `without` taken from, what a sound file has.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**_keys(architecture), **(keys or {})}.items():
        _add_key(writer, key, value)
    values: dict[str, F32] = {}
    for i, (name, shape) in enumerate(gguf_shapes(architecture, tied).items()):
        if name in without:
            continue
        encoding = "F32" if len(shape) == 1 else _kind_of(kind, name)
        rows = random_rows(encoding, *(shape if len(shape) == 2 else (1, *shape)), seed + i)
        values[name] = as_floats(encoding, rows).reshape(shape)
        raw = rows if len(shape) == 2 else rows.reshape(-1)
        if encoding == "F32":
            writer.add_tensor(name, values[name])
        else:
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[encoding])
    for name, extra in (tensors or {}).items():
        values[name] = extra
        writer.add_tensor(name, extra)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def _kind_of(kind: str | Mapping[str, str], name: str) -> str:
    if isinstance(kind, str):
        return kind
    return next((k for end, k in kind.items() if name.endswith(end)), "F32")


def _keys(architecture: str) -> dict[str, Any]:
    plain = {
        "block_count": LAYERS, "context_length": 512, "embedding_length": HIDDEN,
        "feed_forward_length": INNER, "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS, "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM, "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 50000.0,
    }  # fmt: skip
    if architecture == "gemma3":
        plain["attention.sliding_window"] = 16
    return {f"{architecture}.{key}": value for key, value in plain.items()} | {
        "tokenizer.ggml.tokens": [f"token{i}" for i in range(VOCAB)],
        "tokenizer.ggml.scores": [float(i) for i in range(VOCAB)],
    }


def _add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def gguf_shapes(architecture: str, tied: bool) -> dict[str, tuple[int, ...]]:
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    layer: dict[str, tuple[int, ...]] = {
        "attn_q.weight": (q, HIDDEN), "attn_k.weight": (kv, HIDDEN),
        "attn_v.weight": (kv, HIDDEN), "attn_output.weight": (HIDDEN, q),
        "ffn_gate.weight": (INNER, HIDDEN), "ffn_up.weight": (INNER, HIDDEN),
        "ffn_down.weight": (HIDDEN, INNER), "attn_norm.weight": (HIDDEN,),
        "ffn_norm.weight": (HIDDEN,),
    }  # fmt: skip
    if architecture in ("qwen2", "qwen2vl"):
        layer |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
    if architecture in ("qwen3", "qwen3vl", "gemma3"):
        layer |= {"attn_q_norm.weight": (HEAD_DIM,), "attn_k_norm.weight": (HEAD_DIM,)}
    if architecture == "gemma3":
        layer |= {"post_attention_norm.weight": (HIDDEN,), "post_ffw_norm.weight": (HIDDEN,)}
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, HIDDEN)}
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    shapes["output_norm.weight"] = (HIDDEN,)
    return shapes if tied else {**shapes, "output.weight": (VOCAB, HIDDEN)}


def write_folder(
    folder: Path,
    model_type: str = "llama",
    *,
    tied: bool = False,
    config: Mapping[str, Any] | None = None,
    without: tuple[str, ...] = (),
    extra: Mapping[str, Any] | None = None,
    files: int = 0,
    prefix: str = "model.",
) -> dict[str, F32]:
    """Write a Hugging Face folder with random f32 weights; its tensors by name.

    `files` > 0 spreads them over that many files with an index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    names = folder_shapes(model_type, tied, prefix)
    tensors = {
        name: rng.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in names.items()
        if name not in without
    }
    tensors |= extra or {}
    values = {**folder_config(model_type, tied), **(config or {})}
    kept = {k: v for k, v in values.items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    if not files:
        save_file(tensors, folder / "model.safetensors")
        return tensors
    weight_map = {}
    for part in range(files):
        file = f"model-{part + 1:05d}-of-{files:05d}.safetensors"
        chosen = {name: tensors[name] for name in list(tensors)[part::files]}
        save_file(chosen, folder / file)
        weight_map |= dict.fromkeys(chosen, file)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    return tensors


def folder_config(model_type: str, tied: bool) -> dict[str, Any]:
    config = {
        "model_type": model_type, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCAB,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": tied,
    }  # fmt: skip
    if model_type == "gemma3_text":
        return {**config, "sliding_window": 16, "query_pre_attn_scalar": 100}
    return {**config, "rope_theta": 50000.0, "hidden_act": "silu"}


def folder_shapes(model_type: str, tied: bool, prefix: str) -> dict[str, tuple[int, ...]]:
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (q, HIDDEN), "self_attn.k_proj.weight": (kv, HIDDEN),
        "self_attn.v_proj.weight": (kv, HIDDEN), "self_attn.o_proj.weight": (HIDDEN, q),
        "mlp.gate_proj.weight": (INNER, HIDDEN), "mlp.up_proj.weight": (INNER, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, INNER), "input_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.weight": (HIDDEN,),
    }  # fmt: skip
    if model_type == "qwen2":
        layer |= {f"self_attn.{k}_proj.bias": (q if k == "q" else kv,) for k in "qkv"}
    if model_type in ("qwen3", "gemma3_text"):
        layer |= {f"self_attn.{k}_norm.weight": (HEAD_DIM,) for k in "qk"}
    if model_type == "gemma3_text":
        layer |= {f"{k}_feedforward_layernorm.weight": (HIDDEN,) for k in ("pre", "post")}
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}embed_tokens.weight": (VOCAB, HIDDEN)}
    for i in range(LAYERS):
        shapes |= {f"{prefix}layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes[f"{prefix}norm.weight"] = (HIDDEN,)
    return shapes if tied else {**shapes, "lm_head.weight": (VOCAB, HIDDEN)}


def whole(weights: Weights, axis: int) -> F32:
    """A matrix put together again from its shards, dequantized."""
    return np.concatenate([_shard(weights, i) for i in range(weights.count)], axis=axis)


def _shard(weights: Weights, i: int) -> F32:
    spec = weights.spec
    if spec.format.bits == 32:
        return spec.plane(weights.shard(i), "values").astype(np.float32)
    return dequantize(spec, unpack_planes(spec, weights.shard(i)))
