"""A model's configuration (shape and constants, in Hugging Face's names), and the sampler's.

A leaf: the packer writes ModelConfig and the forward pass reads it, neither imports the other;
`--help` reads SamplingOptions without NumPy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from picoedge.errors import ModelError, UnsupportedError, UsageError

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3")
UNTURNED = 1e30  # divisor of a frequency whose pair of dimensions is not rotated


@dataclass(frozen=True)
class RopeScaling:
    """Stretching of the rotary frequencies.

    `kind` is "none", "linear" (all divided by `factor`) or "llama3" (low frequencies divided
    by `factor`, high ones kept, a ramp between; Llama 3.1's release code), or a kind given by
    its divisors alone: "yarn", "longrope".
    `freq_factors` holds explicit per-frequency divisors (of a GGUF's `rope_freqs.weight`, or
    computed from the source's config); they then replace the formula. `long_factors` replace them
    where the context is longer than `original_max_position_embeddings`.
    `attention_factor` multiplies sines and cosines, and so the rotated queries and keys, but not
    pairs whose divisor is UNTURNED.
    """

    kind: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    freq_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        ramp = self.kind == "llama3" and not self.freq_factors
        if ramp and not self.low_freq_factor < self.high_freq_factor:
            raise ModelError(
                f"the rope scaling's low_freq_factor {self.low_freq_factor} is not below its "
                f"high_freq_factor {self.high_freq_factor}",
                "the file is damaged",
            )


@dataclass(frozen=True)
class ModelConfig:
    """The shape of one model. Sizes in elements, names as in Hugging Face's `config.json`."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    rope_local_theta: float = 10_000.0  # base of the layers with a sliding window (Gemma 3)
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"  # or "gelu_tanh"
    qkv_bias: bool = False
    qk_norm: bool = False  # RMS norm of each head's q and k before rope (Qwen3, Gemma 3)
    sandwich_norm: bool = False  # RMS norm of each sublayer's output before the residual (Gemma 3)
    embed_scale: float = 1.0
    attention_scale: float = 0.0  # 0 means head_dim ** -0.5
    sliding_window: int = 0  # 0: none. Positions a windowed layer sees, itself included
    windowed_layers: tuple[int, ...] = ()  # indices of the layers that have the window

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UnsupportedError(
                f"architecture {self.architecture!r} is not supported",
                f"supported: {', '.join(ARCHITECTURES)}",
            )
        for name in (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings",
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 < value < 2**31:
                raise ModelError(f"the model's {name} is {value!r}", "the file is damaged")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"{self.num_attention_heads} attention heads do not divide over "
                f"{self.num_key_value_heads} key-value heads",
                "the file is damaged",
            )
        if self.head_dim % 2:
            raise ModelError(f"head_dim {self.head_dim} is odd", "rotary embedding needs pairs")
        if self.hidden_act not in ("silu", "gelu_tanh"):
            raise UnsupportedError(f"activation {self.hidden_act!r} is not supported")

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def norm_lengths(self) -> dict[str, int]:
        """Norms of one layer and their sizes, in stored order."""
        lengths = {"input_norm": self.hidden_size, "pre_ffn_norm": self.hidden_size}
        if self.sandwich_norm:
            lengths |= {"post_attention_norm": self.hidden_size, "post_ffn_norm": self.hidden_size}
        if self.qk_norm:
            lengths |= {"q_norm": self.head_dim, "k_norm": self.head_dim}
        return lengths

    def to_json(self) -> dict[str, Any]:
        """Plain values for `picoedge.json`.

        What came later is left out where it is not used: older versions read those packs too.
        """
        values = dataclasses.asdict(self)
        later = {"long_factors": (), "attention_factor": 1.0}
        scaling = values["rope_scaling"]
        scaling = {k: v for k, v in scaling.items() if later.get(k, ...) != v}
        return {**values, "rope_scaling": scaling}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_json`; raises ModelError where a key is missing or unknown."""
        try:
            scaling = dict(values["rope_scaling"])
            scaling["freq_factors"] = tuple(scaling["freq_factors"])
            scaling["long_factors"] = tuple(scaling.get("long_factors", ()))
            rest = {k: v for k, v in values.items() if k not in ("rope_scaling", "windowed_layers")}
            return cls(
                rope_scaling=RopeScaling(**scaling),
                windowed_layers=tuple(values["windowed_layers"]),
                **rest,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"the pack's config is damaged: {error}", "pack the model again"
            ) from error


@dataclass(frozen=True)
class SamplingOptions:
    """The steps of a sampler, in their order. Raises UsageError for values out of range.

    The defaults are llama.cpp's but for a lower temperature (there 0.8), which small models need.
    `repeat_penalty` is off, so that `temperature=0` is plain greedy decoding.
    """

    repeat_penalty: float = 1.0  # logits of recent tokens are divided by it (1: off)
    repeat_last_n: int = 64  # how many tokens are recent
    top_k: int = 40  # keep the k likeliest (0: all)
    top_p: float = 0.95  # keep the likeliest that together have this probability (1: all)
    min_p: float = 0.05  # keep those at least this share of the likeliest (0: all)
    temperature: float = 0.7  # 0 is greedy
    seed: int | None = None  # None: a different one each time

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # NaN is neither
                raise UsageError(f"{name} is {value!r:.24}", f"it must be from {low:g} to {high:g}")


# Other programs' names for these: `generation_config.json`, and `general.sampling.*` of a GGUF.
_THEIR_NAMES = {
    "repetition_penalty": "repeat_penalty", "temp": "temperature",
    "penalty_repeat": "repeat_penalty", "penalty_last_n": "repeat_last_n",
}  # fmt: skip


def model_sampling(values: Mapping[str, Any]) -> dict[str, float]:
    """The sampling options among what a model says of itself, by our names.

    Values out of range or of another type are left out: they are advice, no reason to refuse a
    model.
    """
    found: dict[str, float] = {}
    for name, value in values.items():
        name = _THEIR_NAMES.get(name, name)
        if name == "seed" or name not in _RANGES or type(value) not in (int, float):
            continue
        low, high = _RANGES[name]
        if low <= value <= high:  # before it becomes a float, which an integer may be too large for
            whole = name in ("top_k", "repeat_last_n")
            found[name] = int(value) if whole else round(float(value), 6)
    return found


_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100), "top_k": (0, 2**31), "top_p": (0, 1), "min_p": (0, 1),
    "repeat_penalty": (0.01, 100), "repeat_last_n": (0, 2**31), "seed": (0, 2**64),
}  # fmt: skip
