"""A small random model of every architecture, written as a Hugging Face folder with NumPy alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from picoedge.kernels.arrays import F32
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.source import open_source

VOCAB = 211
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
}
# Heads of 32 in threes: every matrix fills blocks of 32, so nothing is left in f32.
BLOCK_SIZES: dict[str, Any] = {"hidden_size": 192, "head_dim": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
GEMMA = {
    "num_hidden_layers": 7,
    "sliding_window": 9,
    "layer_types": ["full_attention" if i == 5 else "sliding_attention" for i in range(7)],
    "query_pre_attn_scalar": 24,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}


@dataclass(frozen=True)
class Case:
    """A family (`<family>ForCausalLM`) and its differences from SIZES (and from BLOCK_SIZES)."""

    family: str
    changes: dict[str, Any] = field(default_factory=dict)
    blocks: dict[str, Any] = field(default_factory=dict)


CASES = {
    "llama": Case("Llama"),
    "llama-tied": Case("Llama", {"tie_word_embeddings": True}),
    "llama-3-groups-of-3": Case(
        "Llama",
        {"hidden_size": 144, "num_attention_heads": 9, "num_key_value_heads": 3},
        {"hidden_size": 288},
    ),
    "llama-rope-llama3": Case("Llama", {"rope_parameters": LLAMA3}),
    "llama-rope-linear": Case("Llama", {"rope_parameters": LINEAR}),
    "llama-one-kv-head": Case(
        "Llama",
        {"hidden_size": 160, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 32},
        {"hidden_size": 160},
    ),
    "mistral-window": Case("Mistral", {"sliding_window": 11}),
    "mistral": Case("Mistral", {"sliding_window": None}),
    "qwen2-bias": Case("Qwen2", {"tie_word_embeddings": True}),
    "qwen3-norms": Case("Qwen3"),
    "gemma3": Case("Gemma3", GEMMA),
}


def write_random_model(name: str, folder: Path, *, blocks: bool = False) -> Path:
    """Write the case's model in f32 into `folder`; returns it.

    Every weight is random, and wide enough to show in the logits.
    """
    case = CASES[name]
    config = SIZES | case.changes | ((BLOCK_SIZES | case.blocks) if blocks else {})
    kind = "gemma3_text" if case.family == "Gemma3" else case.family.lower()
    names = {"architectures": [f"{case.family}ForCausalLM"], "model_type": kind}
    rng = np.random.default_rng(11)
    tensors = {key: _random(rng, key, shape) for key, shape in _shapes(case.family, config).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(names | config))
    return folder


def packed_model(name: str, folder: Path, bits: int, *, blocks: bool = False) -> Pack:
    """The case's model, written to `folder`/hf and packed."""
    source = write_random_model(name, folder / "hf", blocks=blocks)
    pack_source(open_source(source), folder / "m.pico", bits=bits)
    return Pack.open(folder / "m.pico")


def _random(rng: np.random.Generator, key: str, shape: tuple[int, ...]) -> F32:
    noise = rng.standard_normal(shape)
    if len(shape) == 1:  # norms and biases
        return (0.2 * noise + ("norm" in key)).astype(np.float32)
    return (0.9 * noise * shape[1] ** -0.5).astype(np.float32)


def _shapes(family: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model of the family."""
    hidden, ffn, d = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    rows = {"q": config["num_attention_heads"] * d, "k": config["num_key_value_heads"] * d}
    rows["v"] = rows["k"]
    layer = {f"self_attn.{x}_proj.weight": (n, hidden) for x, n in rows.items()}
    if family == "Qwen2":
        layer |= {f"self_attn.{x}_proj.bias": (n,) for x, n in rows.items()}
    if family in ("Qwen3", "Gemma3"):
        layer |= {f"self_attn.{x}_norm.weight": (d,) for x in "qk"}
    layer["self_attn.o_proj.weight"] = (hidden, rows["q"])
    layer |= {"mlp.gate_proj.weight": (ffn, hidden), "mlp.up_proj.weight": (ffn, hidden)}
    layer["mlp.down_proj.weight"] = (hidden, ffn)
    norms = ["input_layernorm", "post_attention_layernorm"]
    if family == "Gemma3":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    layer |= {f"{norm}.weight": (hidden,) for norm in norms}
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{i}.{key}": shape
        for i in range(config["num_hidden_layers"])
        for key, shape in layer.items()
    }
    shapes |= {"model.embed_tokens.weight": (VOCAB, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCAB, hidden)
    return shapes
