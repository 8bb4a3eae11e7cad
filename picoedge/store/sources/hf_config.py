"""`ModelConfig` of a Hugging Face `config.json`.

Missing fields get the defaults of the `transformers` configuration classes. Rope is read from
`rope_theta` with `rope_scaling`, or from `rope_parameters` (rope.py).
"""

from __future__ import annotations

import math
from typing import Any

from picoedge.config import ModelConfig, RopeScaling
from picoedge.errors import ModelError, UnsupportedError
from picoedge.fields import Fields
from picoedge.store.sources.refusals import refuse_quantized
from picoedge.store.sources.rope import part_turned, rope_fields, scaling_of

_FAMILIES = {
    "llama": "llama", "mistral": "mistral", "ministral": "mistral", "ministral3": "mistral",
    "qwen2": "qwen2", "qwen2_vl": "qwen2", "qwen2_vl_text": "qwen2", "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2", "qwen3": "qwen3", "qwen3_vl_text": "qwen3",
    "gemma3_text": "gemma3", "gemma3": "gemma3", "phi3": "phi3",
}  # fmt: skip
# Model types that hold images or sound beside the text, where `text_config` does not name its own.
_TEXT_OF = {
    "gemma3": "gemma3_text", "qwen2_vl": "qwen2_vl_text", "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen3_vl": "qwen3_vl_text", "mistral3": "mistral", "idefics3": "llama", "smolvlm": "llama",
    "llava": "llama", "llava_next": "llama", "llava_next_video": "llama", "vipllava": "llama",
    "llava_onevision": "qwen2", "internvl": "qwen2", "qwen2_audio": "qwen2", "voxtral": "llama",
}  # fmt: skip
# Defaults of missing fields, from the configuration classes of `transformers`.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048,
    },
    "mistral": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    "qwen2": {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
    },
    "gemma3": {
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "max_position_embeddings": 131072, "tie_word_embeddings": True,
        "sliding_window": 4096, "rope_theta": 1_000_000.0,
        "hidden_activation": "gelu_pytorch_tanh",
    },
}  # fmt: skip
_DEFAULTS["phi3"] = {
    "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "original_max_position_embeddings": 4096, "sliding_window": None,
}  # fmt: skip
_DEFAULTS["qwen3"] = {**_DEFAULTS["qwen2"], "head_dim": 128}
_MINISTRAL3: dict[str, Any] = {
    "vocab_size": 131072, "num_hidden_layers": 34, "head_dim": 128, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 262144, "sliding_window": None,
    "rope_parameters": {
        "type": "yarn", "rope_theta": 1e6, "factor": 16.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 16384, "llama_4_scaling_beta": 0.1,
    },
}  # fmt: skip
_MISTRAL_WINDOW = 4096
# The forward pass ignores these fields, so a value would make it silently wrong.
_REFUSED = ("use_bidirectional_attention", "num_local_experts", "num_experts")
_REFUSED_OF = {"gemma3": ("attn_logit_softcapping", "final_logit_softcapping")}
# Families whose `attention_bias` gives q, k, v and o biases; o's is refused unless it is zero.
_MAY_HAVE_BIASES = ("llama", "qwen3", "gemma3")
_MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "logits_scaling",
                "attention_multiplier")  # fmt: skip
_ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
}  # fmt: skip
_HEADS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "Model")


def text_config(fields: Fields) -> Fields:
    """Fields of a `config.json` that describe the language model, with its family's defaults.

    A model with images or sound has its text model's. Raises UnsupportedError on another
    model type, and on quantized weights.
    """
    refuse_quantized(fields)
    kind = fields.values.get("model_type")
    inner = fields
    if isinstance(kind, str) and isinstance(fields.values.get("text_config"), dict):
        inner = fields.object("text_config")
        kind = inner.values.get("model_type") or _TEXT_OF.get(kind, kind)
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise _unsupported(fields, f"model type {str(kind)[:64]!r}")
    heads = fields.get("architectures", list, [])
    if heads and not any(str(h).endswith(_HEADS) for h in heads):
        raise _unsupported(fields, f"{str(heads[0])[:64]} (no language model head)")
    values = {**_DEFAULTS[_FAMILIES[kind]], **inner.values, "model_type": kind}
    if kind == "ministral3":
        values = {**_DEFAULTS["mistral"], **_MINISTRAL3, **inner.values, "model_type": kind}
    if inner is not fields and isinstance(fields.values.get("tie_word_embeddings"), bool):
        values["tie_word_embeddings"] = fields.values["tie_word_embeddings"]
    return Fields(values, inner.where, ModelError, inner.hint, inner.prefix)


def ties_within(fields: Fields) -> bool:
    """Whether the text's own config ties its head, whatever the whole's says."""
    inner = fields.values.get("text_config")
    return isinstance(inner, dict) and inner.get("tie_word_embeddings") is True


def may_have_biases(fields: Fields) -> bool:
    """Whether the model has biases of q, k and v if its files have them: absent ones are zero."""
    family = _FAMILIES[fields.get("model_type", str)]
    return family in _MAY_HAVE_BIASES and bool(fields.values.get("attention_bias"))


def huggingface_config(fields: Fields) -> ModelConfig:
    """Config of the fields that `text_config` returned.

    Raises UnsupportedError on an unsupported field, ModelError on a missing or wrong one.
    """
    architecture = _FAMILIES[fields.get("model_type", str)]
    names = (*_REFUSED, *_REFUSED_OF.get(architecture, ()))
    refused = [name for name in names if fields.values.get(name)]
    refused += [name for name in _MULTIPLIERS if fields.values.get(name) not in (None, 0, 1)]
    if refused:
        raise _unsupported(fields, f"{refused[0]}")
    hidden, heads = fields.get("hidden_size", int), fields.get("num_attention_heads", int)
    plain_dim = hidden // heads if heads > 0 else 0
    head_dim = fields.get("head_dim", int, plain_dim)
    theta, scaling = _rope(fields, "full_attention", architecture, head_dim)
    window, windowed = _window(fields, architecture)
    family = (
        _gemma(fields, hidden, head_dim)
        if architecture == "gemma3"
        else {"rope_local_theta": theta}
    )
    return ModelConfig(
        architecture=architecture,
        hidden_size=hidden,
        intermediate_size=fields.get("intermediate_size", int),
        num_hidden_layers=fields.get("num_hidden_layers", int),
        num_attention_heads=heads,
        num_key_value_heads=fields.get("num_key_value_heads", int, heads),
        head_dim=head_dim,
        vocab_size=fields.get("vocab_size", int),
        max_position_embeddings=_context(fields, scaling),
        rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=fields.get("tie_word_embeddings", bool, False),
        hidden_act=_activation(fields, architecture),
        qkv_bias=architecture == "qwen2" or may_have_biases(fields),
        qk_norm=architecture in ("qwen3", "gemma3"),
        sliding_window=window,
        windowed_layers=windowed,
        **family,
    )


def _unsupported(fields: Fields, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"{fields.where}: {fields.prefix}{what} is not supported",
        f"supported: dense causal models of the types {', '.join(_FAMILIES)}; images and sound "
        "beside them are passed over",
    )


def _activation(fields: Fields, architecture: str) -> str:
    key = "hidden_activation" if architecture == "gemma3" else "hidden_act"
    name = fields.get(key, str, "silu")
    if name not in _ACTIVATIONS:
        raise _unsupported(fields, f"{key} {name!r}")
    return _ACTIVATIONS[name]


def _gemma(fields: Fields, hidden: int, head_dim: int) -> dict[str, Any]:
    local_theta, scaling = _rope(fields, "sliding_attention", "gemma3", head_dim)
    if scaling.kind != "none":
        raise _unsupported(fields, f"rope scaling {scaling.kind!r} of windowed layers")
    return {
        "rope_local_theta": local_theta,
        "sandwich_norm": True,
        "embed_scale": math.sqrt(max(hidden, 0)),
        "attention_scale": fields.positive("query_pre_attn_scalar", 256) ** -0.5,
    }


def _rope(
    fields: Fields, layer_type: str, architecture: str, head_dim: int
) -> tuple[float, RopeScaling]:
    """Rope base and scaling of the layers of one type."""
    local = layer_type == "sliding_attention"
    theta = fields.positive("rope_local_base_freq" if local else "rope_theta", 10_000.0)
    rope = rope_fields(fields, layer_type)
    places = (fields,) if rope is None else (fields, rope)
    shares = [place.positive("partial_rotary_factor", 1.0) for place in places]
    if architecture == "phi3":
        return _partial_rope(fields, rope, min(shares), theta, head_dim)
    if any(share != 1.0 for share in shares):
        raise _unsupported(fields, "partial_rotary_factor")
    if rope is None:
        return theta, RopeScaling()
    theta = rope.positive("rope_theta", theta)
    return theta, scaling_of(fields, rope, architecture, theta, max(head_dim, 2))


def _partial_rope(
    fields: Fields, rope: Fields | None, share: float, theta: float, head_dim: int
) -> tuple[float, RopeScaling]:
    """Rope of heads of which a share turns (Phi)."""
    turned = int(head_dim * share)
    if not 0 < turned <= head_dim or turned % 2:
        raise fields.fault("partial_rotary_factor", "a share of whole pairs")
    scaling = RopeScaling()
    if rope is not None:
        theta = rope.positive("rope_theta", theta)
        scaling = scaling_of(fields, rope, "phi3", theta, turned)
    if share != 1.0 and scaling.kind not in ("none", "longrope"):
        raise _unsupported(rope or fields, f"rope scaling {scaling.kind!r} of a part of a head")
    return theta, part_turned(scaling, head_dim, turned, theta)


def _context(fields: Fields, scaling: RopeScaling) -> int:
    """Positions that the model knows."""
    known = fields.get("max_position_embeddings", int)
    original = scaling.original_max_position_embeddings
    rope = rope_fields(fields, "full_attention")
    if rope is not None and rope.values.get("llama_4_scaling_beta"):
        return min(known, original)  # beyond it queries are scaled by their position
    if scaling.kind == "yarn":  # Qwen's advice is to add the scaling and nothing else
        return max(known, min(int(scaling.factor * original), 2**31 - 1))
    return known


def _window(fields: Fields, architecture: str) -> tuple[int, tuple[int, ...]]:
    """Size of the sliding window, and the layers that use it, as `transformers` reads them."""
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
    return (window, layers) if layers else (0, ())


def _windowed_layers(fields: Fields, architecture: str) -> tuple[int, ...]:
    n_layers = fields.get("num_hidden_layers", int)
    if not 0 < n_layers <= 1 << 16:
        raise fields.fault("num_hidden_layers")
    # Its class has one window for all layers, and no layer types.
    if fields.values.get("model_type") != "ministral3" and fields.values.get("layer_types"):
        return _listed_layers(fields, n_layers)
    if architecture == "gemma3":
        period = fields.get("sliding_window_pattern", int, 6)
        if period <= 0:
            raise fields.fault("sliding_window_pattern")
        return tuple(i for i in range(n_layers) if (i + 1) % period)
    first = fields.get("max_window_layers", int, 28) if architecture.startswith("qwen") else 0
    return tuple(range(max(first, 0), n_layers))


def _listed_layers(fields: Fields, n_layers: int) -> tuple[int, ...]:
    """The layers that `layer_types` gives a window; a Mistral that has it is a Ministral."""
    types = fields.get("layer_types", list)
    if len(types) != n_layers:
        raise fields.fault("layer_types")
    if not all(kind in ("sliding_attention", "full_attention") for kind in types):
        raise _unsupported(fields, "layer_types")
    return tuple(i for i, kind in enumerate(types) if kind == "sliding_attention")
