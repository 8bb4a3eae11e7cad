"""`ModelConfig` of a Hugging Face `config.json`.

Missing fields get the defaults of the `transformers` configuration classes. Rope is read from
`rope_theta` with `rope_scaling`, or from `rope_parameters`.
"""

from __future__ import annotations

import math
from typing import Any

from picoedge.config import ModelConfig, RopeScaling
from picoedge.errors import ModelError, UnsupportedError
from picoedge.fields import Fields

_FAMILIES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
    "gemma3": "gemma3",
}
_GEMMA_DEFAULTS = {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072, "tie_word_embeddings": True, "sliding_window": 4096,
    "rope_theta": 1_000_000.0, "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip
_QWEN3_HEAD_DIM = 128
_MISTRAL_WINDOW = 4096
# The forward pass ignores these fields, so a value would make it silently wrong.
_REFUSED = (
    "attention_bias", "mlp_bias", "attn_logit_softcapping", "final_logit_softcapping",
    "use_bidirectional_attention", "quantization_config", "num_local_experts", "num_experts",
    "embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier",
)  # fmt: skip
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def text_config(fields: Fields) -> Fields:
    """Fields of a `config.json` that describe the language model, with Gemma's defaults.

    Raises UnsupportedError on an unsupported model type.
    """
    kind = fields.values.get("model_type")
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise _unsupported(fields, f"model type {kind!r}")
    heads = fields.get("architectures", list, [])
    if heads and not any(str(h).endswith(("ForCausalLM", "ForConditionalGeneration"))
                         for h in heads):  # fmt: skip
        raise _unsupported(fields, f"{heads[0]} (no language model head)")
    inner = fields.object("text_config") if kind == "gemma3" else fields
    defaults = _GEMMA_DEFAULTS if _FAMILIES[kind] == "gemma3" else {}
    values = {**defaults, **inner.values}
    return Fields(values, inner.where, ModelError, inner.hint, inner.prefix)


def huggingface_config(fields: Fields) -> ModelConfig:
    """Config of the fields that `text_config` returned.

    Raises UnsupportedError on an unsupported field, ModelError on a missing or wrong one.
    """
    refused = [name for name in _REFUSED if fields.values.get(name)]
    if refused:
        raise _unsupported(fields, f"{refused[0]}")
    architecture = _FAMILIES.get(str(fields.values.get("model_type")), "gemma3")
    hidden, heads = fields.get("hidden_size", int), fields.get("num_attention_heads", int)
    plain_dim = hidden // heads if heads > 0 else 0
    head_dim = _QWEN3_HEAD_DIM if architecture == "qwen3" else plain_dim
    theta, scaling = _rope(fields, "full_attention")
    window, windowed = _window(fields, architecture)
    family = _gemma(fields, hidden) if architecture == "gemma3" else {"rope_local_theta": theta}
    return ModelConfig(
        architecture=architecture,
        hidden_size=hidden,
        intermediate_size=fields.get("intermediate_size", int),
        num_hidden_layers=fields.get("num_hidden_layers", int),
        num_attention_heads=heads,
        num_key_value_heads=fields.get("num_key_value_heads", int, heads),
        head_dim=fields.get("head_dim", int, head_dim),
        vocab_size=fields.get("vocab_size", int),
        max_position_embeddings=fields.get("max_position_embeddings", int),
        rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=fields.get("tie_word_embeddings", bool, False),
        hidden_act=_activation(fields, architecture),
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture in ("qwen3", "gemma3"),
        sliding_window=window,
        windowed_layers=windowed,
        **family,
    )


def _unsupported(fields: Fields, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"{fields.where}: {fields.prefix}{what} is not supported",
        f"supported: dense causal models of the types {', '.join(_FAMILIES)}",
    )


def _activation(fields: Fields, architecture: str) -> str:
    key = "hidden_activation" if architecture == "gemma3" else "hidden_act"
    name = fields.get(key, str, "silu")
    if name not in _ACTIVATIONS:
        raise _unsupported(fields, f"{key} {name!r}")
    return _ACTIVATIONS[name]


def _gemma(fields: Fields, hidden: int) -> dict[str, Any]:
    local_theta, scaling = _rope(fields, "sliding_attention")
    if scaling.kind != "none":
        raise _unsupported(fields, f"rope scaling {scaling.kind!r} of windowed layers")
    return {
        "rope_local_theta": local_theta,
        "sandwich_norm": True,
        "embed_scale": math.sqrt(max(hidden, 0)),
        "attention_scale": fields.positive("query_pre_attn_scalar", 256) ** -0.5,
    }


def _rope(fields: Fields, layer_type: str) -> tuple[float, RopeScaling]:
    """Rope base and scaling of the layers of one type."""
    local = layer_type == "sliding_attention"
    old_theta = fields.positive("rope_local_base_freq" if local else "rope_theta", 10_000.0)
    key = "rope_parameters" if fields.values.get("rope_parameters") is not None else "rope_scaling"
    if fields.values.get(key) is None:
        return old_theta, _whole_rotation(fields, fields, RopeScaling())
    rope = fields.object(key)
    nested = isinstance(rope.values.get(layer_type), dict)
    if nested:
        rope = rope.object(layer_type)
    elif local:
        return old_theta, RopeScaling()
    theta = rope.positive("rope_theta", old_theta)
    return theta, _whole_rotation(fields, rope, _scaling(fields, rope))


def _whole_rotation(fields: Fields, rope: Fields, scaling: RopeScaling) -> RopeScaling:
    for place in (fields, rope):
        if place.positive("partial_rotary_factor", 1.0) != 1.0:
            raise _unsupported(place, "partial_rotary_factor")
    return scaling


def _scaling(fields: Fields, rope: Fields) -> RopeScaling:
    kind = rope.get("rope_type", str, rope.get("type", str, "default"))
    if kind == "default":
        return RopeScaling()
    if kind == "linear":
        return RopeScaling(kind="linear", factor=rope.positive("factor"))
    if kind != "llama3":
        raise _unsupported(rope, f"rope scaling {kind!r}")
    trained = fields.positive("max_position_embeddings")
    return RopeScaling(
        kind="llama3",
        factor=rope.positive("factor"),
        low_freq_factor=rope.positive("low_freq_factor"),
        high_freq_factor=rope.positive("high_freq_factor"),
        original_max_position_embeddings=int(
            rope.positive("original_max_position_embeddings", trained)
        ),
    )


def _window(fields: Fields, architecture: str) -> tuple[int, tuple[int, ...]]:
    """Size of the sliding window, and the layers that use it."""
    if architecture == "llama" or (
        architecture.startswith("qwen") and not fields.values.get("use_sliding_window")
    ):
        return 0, ()
    default = _MISTRAL_WINDOW if "sliding_window" not in fields.values else 0
    window = fields.get("sliding_window", int, default)
    if window < 0:
        raise fields.fault("sliding_window")
    if architecture == "gemma3" and window == 0:
        window = fields.get("max_position_embeddings", int)  # these layers keep their own rope base
    layers = _windowed_layers(fields, architecture) if window else ()
    return window, layers


def _windowed_layers(fields: Fields, architecture: str) -> tuple[int, ...]:
    n_layers = fields.get("num_hidden_layers", int)
    if not 0 < n_layers <= 1 << 16:
        raise fields.fault("num_hidden_layers")
    types = fields.values.get("layer_types")
    if types is not None and architecture != "mistral":
        if len(fields.get("layer_types", list)) != n_layers:
            raise fields.fault("layer_types")
        if not all(kind in ("sliding_attention", "full_attention") for kind in types):
            raise _unsupported(fields, "layer_types")
        return tuple(i for i, kind in enumerate(types) if kind == "sliding_attention")
    if architecture == "gemma3":
        period = fields.get("sliding_window_pattern", int, 6)
        if period <= 0:
            raise fields.fault("sliding_window_pattern")
        return tuple(i for i in range(n_layers) if (i + 1) % period)
    first = fields.get("max_window_layers", int, 28) if architecture != "mistral" else 0
    return tuple(range(max(first, 0), n_layers))
