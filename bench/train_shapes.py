"""What both sides of the bench `train` compute: models, first weights, batches of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from picoedge.config import ModelConfig
from picoedge.kernels.arrays import F32, I32
from picoedge.model.parameters import Dense, Gain, Layer, Parameters, TiedEmbedding
from picoedge.train.data.order import SampleOrder
from picoedge.train.presets import PRESETS, preset
from picoedge.train.step.schedule import Schedule

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
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
SMALL = "0.4m"  # of `loss_follows`: bytes in, small enough that rounding does not grow
CLIP, WEIGHT_DECAY, BETAS, EPSILON = 1.0, 0.1, (0.9, 0.95), 1e-8


def grouped_config(architecture: str, **changes: Any) -> ModelConfig:
    """Two layers of four query heads over two key-value heads of 16, of any architecture."""
    values: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 160,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "tie_word_embeddings": True,
    }  # fmt: skip
    return ModelConfig(architecture, **{**values, **ARCHITECTURES[architecture], **changes})


def config_named(name: str) -> ModelConfig:
    """A preset, the model of `loss_follows`, or a small one of an architecture."""
    if name in PRESETS:
        return preset(name)
    if name == SMALL:
        return dataclasses.replace(
            preset("1m"), vocab_size=256, hidden_size=96, intermediate_size=256,
            num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=3, head_dim=32,
        )  # fmt: skip
    return grouped_config(name)


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, F32]:
    """Weights by name, in the order of a model; larger than a run begins with."""
    random = np.random.default_rng(seed)
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    heads = config.num_attention_heads * dim
    qkv = heads + 2 * config.num_key_value_heads * dim
    shapes: dict[str, tuple[int, ...]] = {"embedding": (config.vocab_size, hidden)}
    for i in range(config.num_hidden_layers):
        own: dict[str, tuple[int, ...]] = {
            "qkv": (qkv, hidden), "o": (hidden, heads),
            "gate_up": (2 * inner, hidden), "down": (hidden, inner),
        }  # fmt: skip
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


def random_windows(config: ModelConfig, seed: int, step: int, rows: int, length: int) -> I32:
    """Tokens of a step that mean nothing, i32 [rows, length + 1]."""
    random = np.random.default_rng([seed, step])
    return random.integers(0, config.vocab_size, (rows, length + 1), dtype=np.int32)


@dataclass(frozen=True)
class Course:
    """A run that both sides go through: steps of `rows` windows of `length` + 1 of its tokens.

    The last `held_out` windows of the tokens are for the loss at the end.
    """

    model: str
    seed: int
    steps: int
    rows: int
    length: int
    held_out: int
    peak: float = 1e-3
    warmup: int = 20

    @property
    def schedule(self) -> Schedule:
        """Of its learning rate."""
        return Schedule(self.peak, self.warmup, self.steps)

    def windows(self, ids: I32, step: int) -> I32:
        """The windows of a step, which counts from 1: i32 [rows, length + 1]."""
        count = (len(ids) - 1) // self.length - self.held_out
        order = SampleOrder(count, self.seed)
        first = (step - 1) * self.rows
        return self._cut(ids, [order.sample(first + row) for row in range(self.rows)])

    def held_out_windows(self, ids: I32) -> I32:
        """Those of the loss at the end, i32 [held_out, length + 1]."""
        count = (len(ids) - 1) // self.length
        return self._cut(ids, range(count - self.held_out, count))

    def _cut(self, ids: I32, numbers: Any) -> I32:
        cut = [ids[n * self.length : (n + 1) * self.length + 1] for n in numbers]
        return np.stack(cut).astype(np.int32)
