"""`config.json` of a pack: the inverse of `store.sources.hf_config`. Pure."""

from __future__ import annotations

import math
from typing import Any

from picoedge.config import ModelConfig, RopeScaling
from picoedge.errors import UnsupportedError

_FAMILIES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "mistral": ("MistralForCausalLM", "mistral"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
}
_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
_BIASED = ("llama", "qwen3")  # families that have `attention_bias`, which is o's too


def has_output_bias(config: ModelConfig) -> bool:
    """Whether the family's biases of q, k and v bring one of o, of zeros."""
    return config.qkv_bias and config.architecture in _BIASED


def huggingface_values(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The values of `config.json`; `dtype` is f32 or f16.

    Raises UnsupportedError where the family's class cannot say what the model is.
    """
    check_exportable(config, "Hugging Face", _FAMILIES)
    name, kind = _FAMILIES[config.architecture]
    values: dict[str, Any] = {
        "architectures": [name],
        "model_type": kind,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": {"f32": "float32", "f16": "float16"}[dtype],
        "use_cache": True,
    }
    values |= {"rope_scaling": scaling} if (scaling := _scaling(config.rope_scaling)) else {}
    gate = "hidden_activation" if config.architecture == "gemma3" else "hidden_act"
    values[gate] = _ACTIVATIONS[config.hidden_act]
    if config.architecture in _BIASED:
        values["attention_bias"] = config.qkv_bias
    return values | _windows(config) | (_gemma(config) if config.architecture == "gemma3" else {})


def check_exportable(config: ModelConfig, form: str, families: dict[str, Any]) -> None:
    """Raise UnsupportedError for what only packs can say."""
    plain_scale = config.head_dim**-0.5
    reasons = {
        f"models of the kind {config.architecture}": config.architecture not in families,
        f"rope scaling {config.rope_scaling.kind!r}": config.rope_scaling.kind
        not in ("none", "linear", "llama3"),
        "a scale of scores of its own": config.architecture != "gemma3"
        and not math.isclose(config.attention_scale or plain_scale, plain_scale, rel_tol=1e-6),
        "biases of q, k and v": config.qkv_bias and config.architecture not in ("qwen2", *_BIASED),
    }
    for what, is_so in reasons.items():
        if is_so:
            raise UnsupportedError(
                f"{what} cannot be exported to {form}",
                f"the kinds that can: {', '.join(families)}; rope unscaled, linear or llama3",
            )


def _scaling(scaling: RopeScaling) -> dict[str, Any]:
    if scaling.kind == "none":
        return {}
    if scaling.freq_factors:
        raise UnsupportedError(
            "rope's divisors as this pack has them cannot be exported to Hugging Face",
            "export it as GGUF: --to gguf",
        )
    values: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        values |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        }
    return values


def _windows(config: ModelConfig) -> dict[str, Any]:
    layers, windowed = range(config.num_hidden_layers), config.windowed_layers
    if config.architecture == "llama":
        return {}
    if config.architecture == "mistral":
        if windowed and len(windowed) != len(layers):
            raise UnsupportedError("a Mistral with a window in some layers cannot be exported")
        return {"sliding_window": config.sliding_window if windowed else None}
    types = ["sliding_attention" if i in windowed else "full_attention" for i in layers]
    values: dict[str, Any] = {"layer_types": types}
    if windowed or config.architecture == "gemma3":
        values["sliding_window"] = config.sliding_window or config.max_position_embeddings
    if config.architecture != "gemma3":
        # Older versions of the class have no list: a window from a layer on.
        first = min(windowed, default=len(layers))
        values |= {"use_sliding_window": bool(windowed), "max_window_layers": first}
    return values


def _gemma(config: ModelConfig) -> dict[str, Any]:
    scalar = config.attention_scale**-2 if config.attention_scale else config.head_dim
    whole = round(scalar)
    return {
        "query_pre_attn_scalar": whole if math.isclose(whole, scalar, rel_tol=1e-6) else scalar,
        "rope_local_base_freq": config.rope_local_theta,
        "attention_bias": config.qkv_bias,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }
