"""Small models to train: weights by name, and as a thread sees them."""

from __future__ import annotations

from typing import Any

import numpy as np

from picoedge.config import ModelConfig
from picoedge.kernels.arrays import F32
from picoedge.model.vjps import Dense, Gain, Layer, Parameters, TiedEmbedding

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gemma3": {
        "qk_norm": True,
        "sandwich_norm": True,
        "hidden_act": "gelu_tanh",
        "sliding_window": 20,
        "windowed_layers": (0,),
        "embed_scale": 8.0,
    },
}


def tiny_config(architecture: str, **changes: Any) -> ModelConfig:
    """Two layers of four query heads over two key-value heads of 16."""
    values: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 160,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "tie_word_embeddings": True,
    }  # fmt: skip
    return ModelConfig(architecture, **{**values, **ARCHITECTURES[architecture], **changes})


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, F32]:
    """Weights by name, in the order of a model."""
    random = np.random.default_rng(seed)
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    heads = config.num_attention_heads * dim
    qkv = heads + 2 * config.num_key_value_heads * dim
    shapes: dict[str, tuple[int, ...]] = {"embedding": (config.vocab_size, hidden)}
    for i in range(config.num_hidden_layers):
        own = {"qkv": (qkv, hidden), "o": (hidden, heads), "gate_up": (2 * inner, hidden)}
        own |= {"down": (hidden, inner)}
        own |= {name: (length,) for name, length in config.norm_lengths.items()}
        own |= {"bias": (qkv,)} if config.qkv_bias else {}
        shapes |= {f"{i}.{name}": shape for name, shape in own.items()}
    shapes["final_norm"] = (hidden,)
    return {
        name: (random.standard_normal(shape) * 0.1 + name.endswith("norm")).astype(np.float32)
        for name, shape in shapes.items()
    }


def bound(config: ModelConfig, weights: dict[str, F32]) -> tuple[dict[str, F32], Parameters]:
    """Gradients by name, and the parameters that set them."""
    gradients = {name: np.full_like(each, np.nan) for name, each in weights.items()}

    def dense(name: str) -> Dense:
        return Dense(weights[name], gradients[name])

    def gain(name: str) -> Gain:
        return Gain(weights[name], gradients[name])

    def optional(name: str) -> Gain | None:
        return gain(name) if name in weights else None

    layers = [
        Layer(
            gain(f"{i}.input_norm"), dense(f"{i}.qkv"), dense(f"{i}.o"),
            gain(f"{i}.pre_ffn_norm"), dense(f"{i}.gate_up"), dense(f"{i}.down"),
            optional(f"{i}.bias"),
            (gain(f"{i}.q_norm"), gain(f"{i}.k_norm")) if config.qk_norm else None,
            optional(f"{i}.post_attention_norm"), optional(f"{i}.post_ffn_norm"),
        )
        for i in range(config.num_hidden_layers)
    ]  # fmt: skip
    table = dense("embedding")
    return gradients, Parameters(TiedEmbedding(table), layers, gain("final_norm"), table)
